"""The request's `tools` and `tool_choice`: what they may be."""

import re
from collections.abc import Iterator
from typing import Any

from lightvllm.errors import ParameterError
from lightvllm.server.limits import MAX_TOOLS
from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.structured.errors import Unenforceable
from lightvllm.structured.json_schema import enforceable

# "none", "auto", "required", or {"type": "function", "function": {"name": ...}}; None is "auto" if there are tools.
ToolChoice = str | dict[str, Any] | None

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CHOICES = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'


def is_forced(tool_choice: ToolChoice) -> bool:
    """Whether the output must be a call: `tool_choice` is "required" or names a function."""
    return tool_choice == "required" or isinstance(tool_choice, dict)


def chosen_functions(tools: list[dict[str, Any]], tool_choice: ToolChoice) -> Iterator[tuple[int, dict[str, Any]]]:
    """The functions that may be called, each with its place in `tools`: all, or the named one. Both validated."""
    for index, tool in enumerate(tools):
        if not isinstance(tool_choice, dict) or tool["function"]["name"] == tool_choice["function"]["name"]:
            yield index, tool["function"]


def function_names(tools: list[dict[str, Any]], tool_choice: ToolChoice) -> frozenset[str]:
    """Names of the functions that may be called."""
    return frozenset(function["name"] for _, function in chosen_functions(tools, tool_choice))


def validate_tools(tools: list[dict[str, Any]] | None, tool_choice: ToolChoice, tool_format: ToolFormat | None) -> None:
    """Refuse tools and tool choices that make no sense.

    Args:
        tools: the request's, as plain JSON values.
        tool_choice: the request's, as plain JSON values.
        tool_format: how this model writes calls; with None only a grammar can make it call, so "auto" is refused.

    Raises:
        ParameterError: for "tools" or "tool_choice".
    """
    if tools is not None:
        _validate_functions(tools)
    if tool_choice is None:
        tool_choice = "none" if tools is None else "auto"
    if not isinstance(tool_choice, str | dict) or tool_choice not in ("none", "auto", "required"):
        name = _named(tool_choice)
        if tools is not None and name not in function_names(tools, "auto"):
            raise ParameterError("tool_choice", f"tool_choice names {name!r}, which is not among the tools")
    if tools is None:
        if tool_choice != "none":
            raise ParameterError(
                "tool_choice", f"tool_choice is {tool_choice!r}, but there are no tools to choose from"
            )
    elif tool_choice == "auto" and tool_format is None:
        raise ParameterError(
            "tool_choice",
            'tool_choice is "auto", but this model\'s chat template shows no known format of tool calls: choose '
            '"required", a function or "none", or serve the model with --tool-call-parser',
        )


def _named(tool_choice: Any) -> str:
    """The name in a `tool_choice` that names a function."""
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or tool_choice.get("type", "function") != "function":
        raise ParameterError("tool_choice", f"tool_choice is {tool_choice!r:.200}, but must be {_CHOICES}")
    return name


def _validate_functions(tools: Any) -> None:
    if not isinstance(tools, list) or not 0 < len(tools) <= MAX_TOOLS:
        has = f"has {len(tools)}" if isinstance(tools, list) else f"is {tools!r:.200}"
        raise ParameterError("tools", f"tools {has}, but must be a list of 1 to {MAX_TOOLS} tools")
    index_of: dict[str, int] = {}
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
            raise _wrong(where, tool, '{"type": "function", "function": {...}}, the only type supported')
        function = tool["function"]
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _wrong(f"{where}.function.name", name, "1 to 64 letters, digits, underscores or hyphens")
        if name in index_of:
            raise _wrong(f"{where}.function.name", name, f"another one: tools[{index_of[name]}] has it already")
        index_of[name] = index
        if not isinstance(function.get("description"), str | None):
            raise _wrong(f"{where}.function.description", function["description"], "a string")
        if not isinstance(function.get("strict"), bool | None):
            raise _wrong(f"{where}.function.strict", function["strict"], "true or false")
        if function.get("parameters") is not None:
            _validate_parameters(function["parameters"], f"{where}.function.parameters")


def _validate_parameters(schema: Any, where: str) -> None:
    """A function's parameters are a JSON schema of an object; {} takes any."""
    if not isinstance(schema, dict):
        raise _wrong(where, schema, "a JSON schema of an object")
    if schema.get("type", "object") != "object":
        raise _wrong(f"{where}.type", schema["type"], '"object": arguments have names')
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _wrong(f"{where}.properties", properties, "an object of schemas by parameter name")
    for name, property_schema in properties.items():
        if not isinstance(property_schema, dict | bool):
            raise _wrong(f"{where}.properties.{name}", property_schema, "a JSON schema")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _wrong(f"{where}.required", required, "a list of parameter names")
    try:
        enforceable(schema)
    except Unenforceable:
        pass  # the model is shown it; who wants it enforced is told in `grammar.py`
    except ParameterError as error:
        raise ParameterError("tools", str(error).replace("structured_outputs: json", where, 1)) from None


def _wrong(where: str, value: Any, expected: str) -> ParameterError:
    return ParameterError("tools", f"{where} is {value!r:.200}, but must be {expected}")
