"""Tool calls and reasoning, by a model of random weights: grammars make it write calls, whatever it would say."""

import json
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.sdk.assistant import LOOK
from tests.sdk.wire import Server, error_of, events

USER: Any = [{"role": "user", "content": "Look!"}]
PLACE = {
    "type": "object",
    "properties": {"room": {"enum": ["hall", "attic"]}, "floor": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["room", "floor"],
    "additionalProperties": False,
}
COLOUR = {"type": "object", "properties": {"deep": {"type": "boolean"}}, "additionalProperties": False}


class Look(BaseModel):
    room: Literal["hall", "attic"]
    lamps: Literal[1, 2]


def tool(name: str, parameters: dict[str, Any] | None = None, **more: Any) -> Any:
    function = {"name": name, **({} if parameters is None else {"parameters": parameters}), **more}
    return {"type": "function", "function": function}


TOOLS = [tool("look", PLACE, description="Looks."), tool("paint", COLOUR)]
PARAMETERS = {"look": PLACE, "paint": COLOUR}
NAMED = {"type": "function", "function": {"name": "look"}}


# The model's reasoning would be noise without an end.
WITHOUT_REASONING = {"chat_template_kwargs": {"enable_thinking": False}}


def create(client: openai.OpenAI, **options: Any) -> Any:
    defaults = {"model": "assistant", "messages": USER, "temperature": 1, "seed": 1, "max_tokens": 400}
    return client.chat.completions.create(**{**defaults, "extra_body": WITHOUT_REASONING, **options})


def saying(script: str, **extra: Any) -> dict[str, Any]:
    """What makes the model say one of its scripts."""
    return {"temperature": 0, "extra_body": {"chat_template_kwargs": {"script": script}, **extra}}


def assert_fits(call: Any) -> None:
    arguments = json.loads(call.function.arguments)
    assert isinstance(arguments, dict)
    jsonschema.validate(arguments, PARAMETERS[call.function.name])


@pytest.mark.parametrize("seed", range(4))
def test_required_calls(tiny: openai.OpenAI, seed: int) -> None:
    [choice] = create(tiny, tools=TOOLS, tool_choice="required", seed=seed).choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert choice.message.tool_calls
    assert len({call.id for call in choice.message.tool_calls}) == len(choice.message.tool_calls)
    for call in choice.message.tool_calls:
        assert call.type == "function"
        assert_fits(call)


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("seed", range(3))
def test_one_call_where_calls_are_not_parallel(tiny: openai.OpenAI, choice: Any, seed: int) -> None:
    message = create(tiny, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, seed=seed).choices[0].message
    [call] = message.tool_calls
    assert_fits(call)


@pytest.mark.parametrize("seed", range(3))
def test_a_named_function_is_called(tiny: openai.OpenAI, seed: int) -> None:
    [choice] = create(tiny, tools=TOOLS, tool_choice=NAMED, seed=seed).choices
    assert choice.finish_reason in ("stop", "tool_calls")  # OpenAI: stop where the call was named; vLLM: as ours
    assert choice.message.tool_calls
    for call in choice.message.tool_calls:
        assert call.function.name == "look"
        assert_fits(call)


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=["required", "named"])
def test_a_function_without_parameters_gets_an_object(tiny: openai.OpenAI, tool_choice: Any) -> None:
    for parameters in (None, {}, {"type": "object"}, {"type": "object", "properties": {}}):
        options = {"tools": [tool("look", parameters)], "tool_choice": tool_choice, "parallel_tool_calls": False}
        for seed in range(2):
            choice = create(tiny, **options, seed=seed, max_tokens=150).choices[0]
            if choice.finish_reason == "length":
                continue
            assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments), dict)


def test_streamed_calls_add_up(tiny: openai.OpenAI) -> None:
    for tool_choice in ("required", NAMED):
        options = {"tools": TOOLS, "tool_choice": tool_choice, "seed": 3}
        whole = create(tiny, **options).choices[0]
        calls: dict[int, list[str]] = {}
        ends = []
        for chunk in create(tiny, **options, stream=True):
            [choice] = chunk.choices
            assert not choice.delta.content
            ends += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or []:
                if part.index not in calls:
                    assert part.id
                    assert part.type == "function"
                    calls[part.index] = [part.function.name, ""]
                else:
                    assert part.function.name is None
                calls[part.index][1] += part.function.arguments or ""
        expected = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls]
        assert list(calls.values()) == expected
        assert list(calls) == list(range(len(calls)))
        assert ends == [whole.finish_reason]


def test_the_stream_helper_gathers_calls(tiny: openai.OpenAI) -> None:
    strict = [tool("look", PLACE, strict=True), tool("paint", {**COLOUR, "required": ["deep"]}, strict=True)]
    options: dict[str, Any] = {"tools": strict, "tool_choice": "required", "seed": 2, "extra_body": WITHOUT_REASONING}
    options |= {"model": "assistant", "messages": USER}
    with tiny.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.tool_calls
    for call in message.tool_calls:
        assert call.function.parsed_arguments == json.loads(call.function.arguments)
        assert_fits(call)


def test_calls_that_the_model_chooses_itself(tiny: openai.OpenAI) -> None:
    choice = create(tiny, tools=TOOLS, tool_choice="auto", **saying("<|calls|>")).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content.strip() == "So be it."
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert calls == [("look", {"room": "hall", "floor": 3}), ("paint", {"deep": True})]


def test_calls_that_the_model_chooses_itself_streamed(tiny: openai.OpenAI) -> None:
    content, arguments = "", ["", ""]
    for chunk in create(tiny, tools=TOOLS, stream=True, **saying("<|calls|>")):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        for part in delta.tool_calls or []:
            arguments[part.index] += part.function.arguments or ""
    assert content.strip() == "So be it."
    assert [json.loads(text) for text in arguments] == [{"room": "hall", "floor": 3}, {"deep": True}]
    assert chunk.choices[0].finish_reason == "tool_calls"


def test_no_calls_where_none_are_wanted(tiny: openai.OpenAI) -> None:
    for options in ({"tools": TOOLS, "tool_choice": "none"}, {}):
        choice = create(tiny, **options, **saying("<|call|>")).choices[0]
        assert choice.message.tool_calls is None
        assert choice.message.content == LOOK
        assert choice.finish_reason == "stop"


def test_tools_are_in_the_prompt_unless_none_may_be_called(tiny: openai.OpenAI, assistant: Server) -> None:
    def prompt(**options: Any) -> str:
        answer = create(tiny, **options, max_tokens=1, extra_body={"return_token_ids": True})
        return assistant.detokenize(answer.prompt_token_ids)

    assert '"look"' in prompt(tools=TOOLS)
    assert '"look"' not in prompt()


@pytest.mark.parametrize("length", range(1, 34, 3))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_call_that_is_cut_leaks_nothing_into_content(tiny: openai.OpenAI, length: int, stream: bool) -> None:
    answer = create(tiny, tools=TOOLS, max_tokens=length, stream=stream, **saying("<|call|>"))
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    content = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    assert content == ""
    assert choices[-1].finish_reason in ("length", "tool_calls", "stop")


@pytest.mark.parametrize("tool_choice", ["required", NAMED], ids=["required", "named"])
@pytest.mark.parametrize("length", [1, 9, 25, 40])
def test_a_forced_call_that_is_cut_leaks_nothing_into_content(
    tiny: openai.OpenAI, tool_choice: Any, length: int
) -> None:
    choice = create(tiny, tools=TOOLS, tool_choice=tool_choice, max_tokens=length).choices[0]
    assert not choice.message.content
    assert choice.finish_reason == "length"


def test_reasoning_is_apart_from_content(tiny: openai.OpenAI) -> None:
    message = create(tiny, **saying("<|think|>")).choices[0].message
    assert message.reasoning.strip() == "Where to go? Up or down?"
    assert message.content.strip() == "There."
    reasoning = content = ""
    for chunk in create(tiny, **saying("<|think|>"), stream=True):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning", None) or ""
        content += delta.content or ""
    assert (reasoning, content) == (message.reasoning, message.content)
    hidden = create(tiny, **saying("<|think|>", include_reasoning=False)).choices[0].message
    assert not hidden.reasoning
    assert hidden.content == message.content


@pytest.mark.parametrize("length", range(1, 14, 2))
def test_reasoning_that_is_cut_is_no_content(tiny: openai.OpenAI, length: int) -> None:
    choice = create(tiny, max_tokens=length, **saying("<|think|>")).choices[0]
    assert choice.finish_reason == "length"
    assert "Where to go? Up or down?".startswith((choice.message.reasoning or "").strip())
    assert not choice.message.content


def test_reasoning_and_then_a_call(tiny: openai.OpenAI) -> None:
    message = create(tiny, tools=TOOLS, **saying("<|think-call|>")).choices[0].message
    assert message.reasoning.strip() == "Where to go? Up or down?"
    assert [call.function.name for call in message.tool_calls] == ["look"]
    assert not (message.content or "").strip()


def test_a_tool_from_pydantic(tiny: openai.OpenAI) -> None:
    completion = tiny.chat.completions.parse(
        model="assistant", messages=USER, tools=[openai.pydantic_function_tool(Look)], tool_choice="required",
        parallel_tool_calls=False, seed=1, extra_body=WITHOUT_REASONING,
    )  # fmt: skip
    [call] = completion.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Look)


NONSENSE: dict[str, Any] = {
    "no list": tool("look"),
    "none": [],
    "no function": [{"type": "function"}],
    "another type": [{"type": "retrieval"}],
    "no name": [{"type": "function", "function": {"parameters": {}}}],
    "bad name": [tool("look here!")],
    "twice": [tool("look"), tool("look")],
    "parameters no object": [tool("look", "x")],  # type: ignore[arg-type]
    "parameters of a number": [tool("look", {"type": "number"})],
    "an unknown type": [tool("look", {"type": "object", "properties": {"a": {"type": "strng"}}})],
    "properties no object": [tool("look", {"type": "object", "properties": ["a"]})],
    "required no list": [tool("look", {"type": "object", "properties": {}, "required": "a"})],
    "a reference to nowhere": [tool("look", {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}})],
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("tool_choice", ["auto", "required"])
def test_nonsense_tools_are_refused(assistant: Server, kind: str, tool_choice: str) -> None:
    response = assistant.chat(messages=USER, tools=NONSENSE[kind], tool_choice=tool_choice, max_tokens=4)
    assert error_of(response, 400)["param"] == "tools"


@pytest.mark.parametrize(
    "choice", ["any", "look", NAMED | {"function": {"name": "fly"}}, {"type": "function"}, 5], ids=str
)
def test_nonsense_choices_are_refused(assistant: Server, choice: Any) -> None:
    response = assistant.chat(messages=USER, tools=TOOLS, tool_choice=choice, max_tokens=4)
    assert error_of(response, 400)["param"] == "tool_choice"


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_forced_call_needs_tools(assistant: Server, choice: Any) -> None:
    response = assistant.chat(messages=USER, tool_choice=choice, max_tokens=4)
    assert error_of(response, 400)["param"] in ("tool_choice", "tools")


def test_raw_chunks_of_calls(assistant: Server) -> None:
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required", "seed": 1, "stream": True, "max_tokens": 400}
    chunks = events(assistant.chat(**body, **WITHOUT_REASONING).text)
    first = next(chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"][0]["delta"].get("tool_calls"))
    [call] = first["tool_calls"]
    assert call["index"] == 0
    assert call["type"] == "function"
    assert call["function"]["name"] in PARAMETERS
    assert isinstance(call["function"]["arguments"], str)
