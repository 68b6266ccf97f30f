"""Every field of OpenAI's chat and completion requests and of vLLM's, and what this server does with it.

The table is run: `tests/server/test_protocol_parity.py` sends each row's good and bad values.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

MESSAGES = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True)
class Row:
    """A field.

    Attributes:
        how: "honoured"; "only": it has one harmless meaning here, and other values are refused; or "refused".
        by: what honours it, or why it is refused.
        good: a value that is accepted.
        bad: values that are refused with a 400 whose `param` is the field's name.
        beside: other fields that the good value needs.
    """

    how: Literal["honoured", "only", "refused"]
    by: str
    good: Any
    bad: tuple[Any, ...]
    beside: dict[str, Any] = field(default_factory=dict)


def sampled(good: Any, *bad: Any, **beside: Any) -> Row:
    """A field of SamplingParams."""
    return Row("honoured", "SamplingParams", good, bad, beside)


def refused(why: str, *bad: Any) -> Row:
    return Row("refused", why, None, bad)


BOTH: dict[str, Row] = {
    "model": Row("honoured", "404 where it is not served", "default", (5, True, ["default"])),
    "n": sampled(2, 0, -1, 1.5, "2", True, 2**64),
    "stream": Row("honoured", "server-sent events", True, ("true", 1)),
    "stream_options": Row(
        "honoured",
        "include_usage, continuous_usage_stats; include_obfuscation only false",
        {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False},
        (True, {"include_usage": 1}, {"unknown": True}, {"include_obfuscation": True}),
        {"stream": True},
    ),
    "temperature": sampled(0.5, -0.1, 2.1, "1", True),
    "top_p": sampled(0.9, 0, 1.1, "1"),
    "top_k": sampled(5, -2, 1.5, "5"),
    "min_p": sampled(0.1, -0.1, 1.1),
    "presence_penalty": sampled(-1, -2.1, 2.1, "0"),
    "frequency_penalty": sampled(1, -2.1, 2.1),
    "repetition_penalty": sampled(1.1, 0, -1, 1e-300),
    "seed": sampled(7, 2**63, 1.5, "7"),
    "logit_bias": sampled({"5": 100}, {"5": 100.1}, {"five": 1}, {"-1": 1}, {"5": "1"}, [5]),
    "stop": sampled(["a", "b"], "", [""], 5, [5], ["a"] * 65, "a" * 1025),
    "stop_token_ids": sampled([1, 2], [-1], 5, ["5"], [1.5]),
    "include_stop_str_in_output": sampled(True, 1),
    "ignore_eos": sampled(True, "true"),
    "min_tokens": sampled(2, -1, 1.5),
    "skip_special_tokens": sampled(False, 0),
    "spaces_between_special_tokens": sampled(False, 0),
    "allowed_token_ids": sampled([1, 2], [], [-1], 5),
    "bad_words": sampled(["a"], [""], "a", [5]),
    "prompt_logprobs": sampled(2, -2, 1.5, True),
    "truncate_prompt_tokens": Row("honoured", "cuts the prompt's tokens", 5, (0, -2, 1.5)),
    "truncation_side": Row("honoured", "which end is cut", "right", ("middle", 1)),
    "return_tokens_as_token_ids": Row("honoured", "token names in logprobs", True, (1,)),
    "return_token_ids": Row("honoured", "prompt_token_ids, token_ids in the answer", True, (1,)),
    "priority": Row("honoured", "the scheduler's priority policy", 3, (1.5, "3", 2**63)),
    "request_id": Row("honoured", "the answer's id, the log", "abc", ("", "a\nb", "a" * 257, 5)),
    "cache_salt": Row("honoured", "prefix cache: shared among requests of the same salt", "abc", ("", "a\nb", 5)),
    "user": Row("honoured", "the access log", "abc", ("", "a\nb", "a" * 257, 5)),
    "timeout": Row("honoured", "the request's deadline: a 504 after it", 1.5, (0, -1, 1e9, "1")),
    "response_format": Row(
        "honoured",
        "structured output",
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        ("text", {"type": "xml"}, {}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "a"}}),
    ),
    "structured_outputs": Row(
        "honoured", "structured output", {"regex": "a+"}, ({"unknown": 1}, {"regex": 5}, "a+", {"choice": []})
    ),
    "guided_json": Row("honoured", "structured output: json", {"type": "object"}, (5, True)),
    "guided_regex": Row("honoured", "structured output: regex", "a+", (5,)),
    "guided_choice": Row("honoured", "structured output: choice", ["a", "b"], ([], "a", [5])),
    "guided_grammar": Row("honoured", "structured output: grammar", 'root ::= "a"', (5,)),
    "guided_json_object": Row("honoured", "structured output: json_object", True, (1, "true")),
    "guided_whitespace_pattern": Row(
        "honoured", "structured output: white space in JSON", " ?", (5,), {"guided_json": {"type": "object"}}
    ),
    "best_of": Row("only", "the value of n", 1, (2, 0, "1")),
    "use_beam_search": Row("only", "false", False, (True,)),
    "length_penalty": Row("only", "1, it belongs to beam search", 1.0, (0.5, 2)),
    "guided_decoding_backend": refused("there is one backend", "outlines"),
    "logits_processors": refused("code does not come with requests", [], ["x"]),
    "logprob_token_ids": refused("log-probabilities are of the likeliest tokens", [1]),
    "repetition_detection": refused("not implemented", {}),
    "thinking_token_budget": refused("not implemented", 5),
    "stream_interval": refused("tokens are sent as they come", 5),
    "watermarking": refused("outputs carry no watermark", True, False),
    "session_id": refused("requests know no sessions", "abc"),
    "kv_transfer_params": refused("the KV cache stays in this engine", {}),
    "ec_transfer_params": refused("there is no encoder", {}),
    "vllm_xargs": refused("there are no extensions that would read it", {}),
    "routed_experts_prompt_start": refused("expert routing is not reported", 0),
    "return_token_offsets": refused("not implemented", True, False),
    "return_mm_kwargs": refused("text only", True, False),
}

CHAT: dict[str, Row] = {
    **BOTH,
    "messages": Row(
        "honoured",
        "the chat template",
        MESSAGES,
        (
            [],
            "Hello",
            [{"role": "user"}],
            [{"role": "function", "name": "f", "content": "x"}],
            [{"role": "assistant"}],
            [{"role": "tool", "content": "x"}],
            [{"content": "x"}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": 5}],
            [{"role": "user", "content": "x", "unknown": 1}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
            [{"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": "{}"}}],
        ),
    ),
    "max_tokens": sampled(5, 0, -1, 1.5, "5", True),
    "max_completion_tokens": sampled(5, 0, -1, 1.5, "5"),
    "logprobs": sampled(True, 1, 5, "true"),
    "top_logprobs": sampled(3, -2, 1.5, True, logprobs=True),
    "tools": Row(
        "honoured",
        "the chat template, the parser of tool calls",
        [TOOL],
        (
            [],
            TOOL,
            [TOOL, TOOL],
            [{"type": "custom", "custom": {"name": "x"}}],
            [{"type": "function", "function": {"name": "white space"}}],
            [{"type": "function", "function": {"name": "f", "parameters": "x"}}],
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
        ),
    ),
    "tool_choice": Row(
        "honoured",
        "required and named are enforced by grammar",
        {"type": "function", "function": {"name": "look"}},
        ("any", {"type": "function", "function": {"name": "other"}}, {"type": "allowed_tools"}, 5),
        {"tools": [TOOL]},
    ),
    "parallel_tool_calls": Row("honoured", "false: at most one call", False, (1, "true"), {"tools": [TOOL]}),
    "reasoning_effort": Row("honoured", "variable of the chat template; none: enable_thinking=false", "low", ("x", 1)),
    "include_reasoning": Row("honoured", "false: no `reasoning` in the answer", False, (0,)),
    "echo": Row("honoured", "begins with the message it continues", True, (1,), {"continue_final_message": True}),
    "add_generation_prompt": Row("honoured", "the chat template", False, (0,)),
    "continue_final_message": Row("honoured", "the chat template", True, (1,), {"add_generation_prompt": False}),
    "add_special_tokens": Row("honoured", "the tokenizer", True, (1,)),
    "documents": Row("honoured", "the chat template", [{"text": "x"}], ({}, ["x"])),
    "chat_template": Row("honoured", "by name; source only with trust_request_chat_template", "default", (5,)),
    "chat_template_kwargs": Row("honoured", "the chat template", {"enable_thinking": False}, ([], {"messages": []})),
    "safety_identifier": Row("honoured", "the access log", "abc", ("", "a\nb", 5)),
    "prompt_cache_key": Row("honoured", "one prefix cache serves all, whatever the key", "abc", ("", "a\nb", 5)),
    "prompt_cache_retention": Row("only", "in_memory", "in_memory", ("24h", 5)),
    "service_tier": Row("only", "auto, default", "auto", ("flex", "priority", 5)),
    "store": Row("only", "false", False, (True,)),
    "modalities": Row("only", "text", ["text"], (["audio"], ["text", "audio"], [], "text")),
    "verbosity": Row("only", "medium", "medium", ("low", "high", 5)),
    "audio": refused("text only", {"voice": "alloy", "format": "wav"}),
    "prediction": refused("not used", {"type": "content", "content": "x"}),
    "web_search_options": refused("nothing is searched", {}),
    "metadata": refused("nothing is stored", {}, {"a": "b"}),
    "moderation": refused("there is none", {"model": "x"}),
    "prompt_cache_options": refused("every prefix is cached", {"mode": "implicit"}),
    "functions": refused("tools is its successor", [{"name": "f"}]),
    "function_call": refused("tool_choice is its successor", "auto"),
    "mm_processor_kwargs": refused("text only", {}),
    "media_io_kwargs": refused("text only", {}),
    "return_prompt_text": refused("/detokenize tells it", True),
}

COMPLETION: dict[str, Row] = {
    **BOTH,
    "prompt": Row("honoured", "the tokenizer", [[1, 2], [3]], ([], 5, [[]], [1, "a"], [1.5], [-1], ["a", 1], [True])),
    "max_tokens": sampled(5, 0, -1, 1.5, "5", True),
    "logprobs": sampled(3, -2, True, 1.5),
    "echo": Row("honoured", "the prompt's text and logprobs first", True, (1,)),
    "add_special_tokens": Row("honoured", "the tokenizer", False, (0,)),
    "suffix": refused("the models here do not fill in", "x"),
    "prompt_embeds": refused("prompts are text or token ids", "x"),
}

# vLLM's names besides OpenAI's own.
VLLM_BOTH = """
    top_k min_p repetition_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs allowed_token_ids bad_words
    structured_outputs priority request_id return_tokens_as_token_ids return_token_ids cache_salt add_special_tokens
    use_beam_search length_penalty kv_transfer_params vllm_xargs logits_processors guided_json guided_regex
    guided_choice guided_grammar guided_decoding_backend guided_whitespace_pattern thinking_token_budget
    repetition_detection stream_interval session_id logprob_token_ids watermarking ec_transfer_params
    routed_experts_prompt_start return_token_offsets return_mm_kwargs response_format
""".split()  # noqa: SIM905
VLLM_CHAT = """
    echo add_generation_prompt continue_final_message documents chat_template chat_template_kwargs include_reasoning
    reasoning_effort best_of mm_processor_kwargs media_io_kwargs return_prompt_text
""".split()  # noqa: SIM905
VLLM_COMPLETION = ["prompt_embeds"]

# ---- as a page of the documentation

HEADING = """# The fields of the API

Every field of OpenAI's two generating requests and of vLLM's extras for text. *honoured*: it does what it says.
*only*: it has one harmless meaning here, and any other value is refused. *refused*: a 400 whose `error.param` is the
field's name, as for any field that is not listed. A null is as if the field was not there. Values are checked
strictly: "5" is no 5.

This page is made from the table that the tests run (`python -m tests.server.parity_table > docs/fields.md`): each row's
good and bad values are sent by `tests/server/test_protocol_parity.py`, which also holds the table against the official
SDK's types.
"""


def page() -> str:
    """The table as Markdown."""
    parts = [HEADING]
    for title, table in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        parts.append(f"\n## {title}\n\n| field | | by |\n| --- | --- | --- |\n")
        parts += [f"| `{name}` | {row.how} | {row.by} |\n" for name, row in sorted(table.items())]
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
