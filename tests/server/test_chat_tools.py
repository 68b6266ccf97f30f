"""/v1/chat/completions: reasoning and tool calls, whole and streamed, however the model's tokens come."""

import json
from typing import Any

import pytest

from lightvllm.config import ServerConfig
from lightvllm.server.generate.chat_setup import output_formats
from tests.server.exchange import Api
from tests.server.fakes import FOREVER, FakeEngine, Pace

PATH = "/v1/chat/completions"
# As Qwen 3's: it may think, and writes calls as JSON within tags.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    '{% if tools %}{{ tools | tojson }}\n<tool_call>\n{"name": <name>, "arguments": <json>}\n</tool_call>{% endif %}'
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PACES = [Pace(), Pace(tokens_per_step=3), Pace(tokens_per_step=7), Pace(all_at_once=True)]
THOUGHT = "<think>\nLet me thïnk 🙂\n</think>\n\n"


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": "…", "parameters": parameters}}


TOOLS = [tool("get_weather"), tool("get_time")]


def call(name: str, **arguments: Any) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments, ensure_ascii=False)}}}\n</tool_call>'


CALLS = call("get_weather", city="Köln 🙂") + "\n" + call("get_time", city="Rom")


def api_for(reply: Any, pace: Pace | None = None, **options: Any) -> Api:
    return Api(FakeEngine(reply, chat_template=TEMPLATE, pace=pace), **options)


def folded(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """A streamed choice, put together as clients do."""
    message: dict[str, Any] = {"role": None, "content": "", "reasoning": "", "tool_calls": []}
    end: dict[str, Any] = {"finish_reason": None, "stop_reason": None}
    logprobs: list[Any] = []
    token_ids: list[int] = []
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        assert end["finish_reason"] is None, "something follows the end"
        delta = choice["delta"]
        if message["role"] is None:
            message["role"] = delta["role"]
        else:
            assert "role" not in delta
        message["content"] += delta.get("content", "")
        message["reasoning"] += delta.get("reasoning", "")
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(message["tool_calls"]):
                assert piece.keys() == {"index", "id", "type", "function"}
                assert piece["function"]["arguments"] == ""
                message["tool_calls"].append({key: piece[key] for key in ("id", "type", "function")})
            else:
                assert piece["index"] == len(message["tool_calls"]) - 1
                assert piece.keys() == {"index", "function"}
                assert piece["function"].keys() == {"arguments"}
                assert piece["function"]["arguments"]
                message["tool_calls"][-1]["function"]["arguments"] += piece["function"]["arguments"]
        if choice["finish_reason"] is not None:
            end = {key: choice[key] for key in end}
        if choice["logprobs"] is not None:
            logprobs += choice["logprobs"]["content"]
        token_ids += choice.get("token_ids", [])
    return {"message": message, **end, "logprobs": logprobs, "token_ids": token_ids}


def plain(choice: dict[str, Any]) -> dict[str, Any]:
    """A whole choice in the form of `folded`."""
    message = choice["message"]
    assert message["refusal"] is None
    return {
        "message": {
            "role": message["role"],
            "content": message["content"] or "",
            "reasoning": message["reasoning"] or "",
            "tool_calls": message.get("tool_calls", []),
        },
        "finish_reason": choice["finish_reason"],
        "stop_reason": choice["stop_reason"],
        "logprobs": choice["logprobs"]["content"] if choice["logprobs"] is not None else [],
        "token_ids": choice.get("token_ids", []),
    }


def without_ids(choice: dict[str, Any]) -> dict[str, Any]:
    calls = choice["message"]["tool_calls"]
    ids = [one.pop("id") for one in calls]
    assert all(one.startswith("call_") for one in ids)
    assert len(set(ids)) == len(ids)
    return choice


# ---- reasoning


def test_reasoning_is_apart_from_the_answer() -> None:
    message = api_for(THOUGHT + "Yes.").chat()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Let me thïnk 🙂", "Yes.")
    message = api_for(THOUGHT + "Yes.").chat(include_reasoning=False)["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "Yes.")
    message = api_for("Yes.").chat()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "Yes.")


def test_reasoning_that_never_ends_leaves_no_content() -> None:
    choice = api_for(THOUGHT).chat(max_tokens=9)["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning"]
    assert choice["finish_reason"] == "length"


def test_reasoning_in_streams() -> None:
    api = api_for(THOUGHT + "Yes.")
    deltas = [chunk["choices"][0]["delta"] for chunk in api.chat(stream=True)]
    kinds = [key for delta in deltas[1:] for key in delta]
    assert kinds == sorted(kinds, reverse=True)  # first reasoning, then content
    hidden = api.chat(stream=True, include_reasoning=False)
    assert folded(hidden)["message"] == {"role": "assistant", "content": "Yes.", "reasoning": "", "tool_calls": []}


def test_when_thinking_is_off_tags_are_text() -> None:
    message = api_for("<think>a</think>b").chat(chat_template_kwargs={"enable_thinking": False})["choices"][0][
        "message"
    ]
    assert (message["reasoning"], message["content"]) == (None, "<think>a</think>b")
    message = api_for("<think>a</think>b", reasoning_parser="none").chat()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, "<think>a</think>b")


def test_structured_output_is_all_content() -> None:
    message = api_for('{"a":"<think>"}').chat(response_format={"type": "json_object"})["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (None, '{"a":"<think>"}')


# ---- tool calls


def test_calls() -> None:
    api = api_for("Let me see.\n" + CALLS)
    choice = api.chat(tools=TOOLS)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert [one.keys() for one in calls] == [{"id", "type", "function"}] * 2
    assert len({one["id"] for one in calls}) == 2
    assert [one["function"]["name"] for one in calls] == ["get_weather", "get_time"]
    assert [json.loads(one["function"]["arguments"]) for one in calls] == [{"city": "Köln 🙂"}, {"city": "Rom"}]
    assert choice["message"]["content"].strip() == "Let me see."
    assert '"get_weather"' in (api.engine.submitted[0].prompt.text or "")
    alone = api_for(CALLS).chat(tools=TOOLS)["choices"][0]["message"]
    assert alone["content"] is None


def test_without_tools_or_with_choice_none_it_is_text() -> None:
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = api_for(CALLS).chat(**options)["choices"][0]
        assert choice["message"]["content"] == CALLS
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_one_call_at_most() -> None:
    for stream in (False, True):
        answer = api_for(CALLS).chat(tools=TOOLS, parallel_tool_calls=False, stream=stream)
        choice = folded(answer) if stream else plain(answer["choices"][0])
        assert [one["function"]["name"] for one in choice["message"]["tool_calls"]] == ["get_weather"]
        assert choice["finish_reason"] == "tool_calls"


def test_a_call_that_is_cut_leaks_nothing() -> None:
    api = api_for(CALLS)
    for max_tokens in range(1, len(api.engine.tokenizer.encode(CALLS))):
        choice = api.chat(tools=TOOLS, max_tokens=max_tokens)["choices"][0]
        assert choice["finish_reason"] == "length"
        assert "<" not in (choice["message"]["content"] or "")
        streamed = folded(api.chat(tools=TOOLS, max_tokens=max_tokens, stream=True))
        assert without_ids(streamed) == without_ids(plain(choice))


def test_why_a_forced_call_ended() -> None:
    named = {"type": "function", "function": {"name": "get_time"}}
    for choice, reason in (("required", "tool_calls"), (named, "stop"), ("auto", "tool_calls")):
        api = api_for(call("get_time", city="Rom"))
        answer = api.chat(tools=TOOLS, tool_choice=choice)["choices"][0]
        assert answer["finish_reason"] == reason
        assert answer["message"]["tool_calls"][0]["function"]["name"] == "get_time"
        structured = api.engine.submitted[0].params.structured_outputs
        assert (structured is None) is (choice == "auto")
        assert structured is None or structured.kind == "grammar"


def test_the_calls_of_a_strict_function_follow_a_grammar() -> None:
    strict = {"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}
    for options, kind in (
        ({}, "grammar"),
        ({"tool_choice": "none"}, None),
        ({"response_format": {"type": "json_object"}}, "json_object"),
    ):
        api = api_for("text")
        choice = api.chat(tools=[strict, TOOLS[1]], **options)["choices"][0]
        structured = api.engine.submitted[0].params.structured_outputs
        assert kind == (None if structured is None else structured.kind)
        assert choice["message"]["content"] == "text"


def test_a_forced_call_and_a_form_exclude_each_other() -> None:
    form = {"response_format": {"type": "json_object"}}
    status, param, message = api_for("x").refused(
        PATH, messages=[{"role": "user", "content": "x"}], tools=TOOLS, tool_choice="required", **form
    )
    assert (status, param) == (400, "tool_choice")
    assert "response_format" in message


def test_special_tokens_around_calls_reach_the_parser_and_nobody_else() -> None:
    engine = FakeEngine("x", chat_template=TEMPLATE)
    engine.reply = [1, *engine.tokenizer.encode(CALLS)]
    choice = Api(engine).chat(tools=TOOLS)["choices"][0]
    assert not engine.submitted[0].params.skip_special_tokens
    assert choice["message"]["content"] is None
    assert len(choice["message"]["tool_calls"]) == 2


def test_the_formats_are_the_settings_or_the_templates() -> None:
    engine = FakeEngine("x", chat_template=TEMPLATE)
    assert output_formats(engine, ServerConfig()) == ("hermes", "think")  # type: ignore[arg-type]
    config = ServerConfig(tool_call_parser="llama3_json", reasoning_parser="none")
    assert output_formats(engine, config) == ("llama3_json", None)  # type: ignore[arg-type]
    assert output_formats(FakeEngine("x"), ServerConfig()) == (None, None)  # type: ignore[arg-type]
    status, param, _ = Api(FakeEngine("x")).refused(PATH, messages=[{"role": "user", "content": "x"}], tools=TOOLS)
    assert (status, param) == (400, "tool_choice")


# ---- streams


@pytest.mark.parametrize("pace", PACES, ids=["1", "3", "7", "all"])
@pytest.mark.parametrize(
    "reply",
    [
        "Just text 🙂.",
        THOUGHT + "Yes <no>.",
        CALLS,
        THOUGHT + "First this.\n" + CALLS + "\nand text",
        "<tool_call> not so",
    ],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}, {"stop": "Rom"}, {"max_tokens": 40}],
    ids=["plain", "tokens", "stop", "length"],
)
def test_streams_say_what_the_whole_answer_says(reply: str, options: dict[str, Any], pace: Pace) -> None:
    body = {"tools": TOOLS, "n": 2, **options}
    api = api_for(reply, pace)
    whole = api.chat(**body)
    *chunks, last = api.chat(**body, stream=True, stream_options={"include_usage": True})
    assert last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        assert without_ids(folded(chunks, choice["index"])) == without_ids(plain(choice))


def test_tokens_come_with_the_text_or_while_it_is_held_back() -> None:
    api = api_for(call("get_time", city="Rom"))
    chunks = api.chat(tools=TOOLS, stream=True, return_token_ids=True)
    assert all(len(chunk["choices"][0].get("token_ids", [])) <= 1 for chunk in chunks)
    silent = [chunk for chunk in chunks if chunk["choices"][0]["delta"] == {}]
    assert len(silent) > 5  # the mark of a call, of which nothing is shown
    assert len(api.chat(tools=TOOLS, stream=True)) < len(chunks) - 5


def test_a_choice_that_does_not_end_holds_up_no_other() -> None:
    api = api_for(lambda text, index: "short" if index else [40, FOREVER])
    chunks = api.chat(n=2, stream=True, max_tokens=100)
    ends = [chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"] is not None]
    assert ends == [1, 0]
