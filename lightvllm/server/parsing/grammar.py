"""Grammars under which a model's tool calls fit their functions: where it must call, and where it may.

They are in llguidance's dialect of Lark (its docs/syntax.md): %json takes a schema, and a rule marked lazy ends where
it first can.
"""

import json
from collections.abc import Iterable
from typing import Any

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.server.parsing.reasoning import ReasoningState
from lightvllm.server.parsing.tool_calls import MARKS
from lightvllm.server.parsing.tools import ToolChoice, chosen_functions
from lightvllm.structured import check_structured_outputs
from lightvllm.structured.json_schema import enforceable

# A call as the chat templates write it: what stands before the name, before the arguments and behind them; and what
# stands between two calls.
_SHAPES: dict[ToolFormat, tuple[str, str, str, str]] = {
    "hermes": ('\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n"),
    "llama3_json": ('{"name": "', '", "parameters": ', "}", "; "),
}
# How the start rule begins, and the rule it needs.
_THINKING: dict[ReasoningState, tuple[str, str]] = {
    "off": ("", ""),
    "possible": (r"(thinking /\n{0,2}/)? ", r'thinking[lazy]: "<think>" /(.|\n)*<\/think>/'),
    "open": (r"thinking /\n{0,2}/ ", r"thinking[lazy]: /(.|\n)*<\/think>/"),
}
# Keywords with which a schema may have properties besides those in "properties".
_OPENING_KEYWORDS = ("$ref", "allOf", "anyOf", "oneOf", "additionalProperties", "patternProperties", "minProperties")


def forced_grammar(
    tools: list[dict[str, Any]],
    tool_choice: ToolChoice,
    parallel_tool_calls: bool,
    tool_format: ToolFormat | None,
    reasoning: ReasoningState,
) -> str:
    """The grammar of an output that must call, for `StructuredOutputsParams(grammar=...)`.

    The arguments are an object that fits the function's `parameters`, without white space, `strict` or not.

    Args:
        tools: the request's, validated.
        tool_choice: "required" or a named function.
        parallel_tool_calls: whether "required" allows more than one call; a named function is called exactly once.
        tool_format: how this model writes calls; None writes them as llama3_json does.
        reasoning: whether the output begins with reasoning, which is left free.

    Raises:
        ParameterError: for "tools", where a function's parameters cannot be enforced.
    """
    tool_format = tool_format or "llama3_json"
    open_tag = "" if MARKS[tool_format].is_bare else MARKS[tool_format].open_tag
    first, next_one = _literal(open_tag), _literal(_SHAPES[tool_format][3] + open_tag)
    is_one = isinstance(tool_choice, dict) or not parallel_tool_calls
    functions = [(index, function, True) for index, function in chosen_functions(tools, tool_choice)]
    return _grammar(
        reasoning,
        f"{first} call" if is_one else f"{first} call ({next_one} call)*",
        *_call_rules(functions, tool_format),
    )


def strict_grammar(
    tools: list[dict[str, Any]], tool_format: ToolFormat | None, reasoning: ReasoningState
) -> str | None:
    """The grammar of an output that may call, if a function is `strict`; None if none is, so nothing is to be enforced.

    Text is free up to where a call begins. From there on it is the call of a function of the request. The arguments of
    a strict one fit its `parameters`; the others' are any object.

    Args, raises: as `forced_grammar`.
    """
    functions = [(index, function, bool(function.get("strict"))) for index, function in chosen_functions(tools, "auto")]
    if tool_format is None or not any(is_strict for _, _, is_strict in functions):
        return None
    calls = _call_rules(functions, tool_format)
    if not MARKS[tool_format].is_bare:
        # What thinking says of calls is no call.
        text = r"/(.|\n)*<tool_call>/" + (r" & ~/<think>(.|\n)*/" if reasoning == "possible" else "")
        return _grammar(
            reasoning, "(before_call call)* text", "before_call[lazy]: BEFORE_CALL", f"BEFORE_CALL: {text}",
            r"text: /(.|\n)*/", *calls,
        )  # fmt: skip
    between = _literal(_SHAPES[tool_format][3])
    return _grammar(reasoning, f"(text | call ({between} call)*)", r"text: /(\s*[^{\s](.|\n)*)?/", *calls)


def arguments_schema(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of a function's arguments, made from its `parameters`: always one of an object.

    Without `parameters` there are no arguments. Where `parameters` names some and does not speak of others, there are
    no others: a function takes those it has.
    """
    if parameters is None:
        parameters = {"properties": {}}
    schema = {**parameters, "type": "object"}
    properties = parameters.get("properties")
    is_open = properties is None or any(keyword in parameters for keyword in _OPENING_KEYWORDS)
    if not is_open and set(parameters.get("required", ())) <= set(properties or ()):
        schema["additionalProperties"] = False
    return schema


def _grammar(reasoning: ReasoningState, start: str, *rules: str) -> str:
    """The grammar of these rules, which was tried.

    Raises:
        ParameterError: for "tools": it would take too much.
    """
    thinking, thinking_rule = _THINKING[reasoning]
    grammar = "\n".join(rule for rule in (f"start: {thinking}{start}", thinking_rule, *rules) if rule) + "\n"
    try:
        check_structured_outputs(StructuredOutputsParams(grammar=grammar))
    except ParameterError as error:
        raise ParameterError("tools", f"tools: calls of them cannot be enforced: {_bare_message(error)}") from None
    return grammar


def _call_rules(functions: Iterable[tuple[int, dict[str, Any], bool]], tool_format: ToolFormat) -> list[str]:
    """The rule `call` for the functions (each with its place in `tools`, and whether its parameters are enforced)."""
    before_name, before_arguments, end, _ = _SHAPES[tool_format]
    rules = []
    for index, function, is_enforced in functions:
        schema = _enforceable_arguments(function, index) if is_enforced else {"type": "object"}
        start = _literal(before_name + function["name"] + before_arguments)
        rules.append(f"call_{index}: {start} %json {json.dumps(schema)} {_literal(end)}")
    names = " | ".join(f"call_{index}" for index, _, _ in functions)
    return [f"call: {names}", *rules]


def _enforceable_arguments(function: dict[str, Any], index: int) -> dict[str, Any]:
    """The schema of a function's arguments without what says nothing of them, descriptions for example."""
    try:
        schema = enforceable(arguments_schema(function.get("parameters")))
        check_structured_outputs(StructuredOutputsParams(json=schema))
    except ParameterError as error:
        raise ParameterError("tools", f"tools[{index}].function.parameters: {_bare_message(error)}") from None
    return schema


def _bare_message(error: ParameterError) -> str:
    """What is wrong, without the field where a user would have given the structure."""
    return str(error).removeprefix("structured_outputs: ").removeprefix("json: ").removeprefix("grammar: ")


def _literal(text: str) -> str:
    """A string literal in Lark, which escapes as JSON does."""
    return json.dumps(text)
