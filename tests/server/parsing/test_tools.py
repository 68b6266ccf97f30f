"""Tools and tool choices that make no sense are refused, by the name of the field and the place in it."""

from typing import Any

import pytest

from lightvllm.errors import ParameterError
from lightvllm.server.parsing import is_forced, validate_tools


def tool(name: Any = "get", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": True}, "required": ["a"]}


@pytest.mark.parametrize(
    ("tools", "tool_choice"),
    [
        (None, None),
        (None, "none"),
        ([tool()], None),
        ([tool()], "none"),
        ([tool()], "auto"),
        ([tool()], "required"),
        ([tool("a"), tool("B_-9" * 16)], named("a")),
        ([tool(parameters=PARAMETERS, description="Gets.", strict=True)], "auto"),
        ([tool(parameters={})], "auto"),
        ([tool(parameters=None, description=None, strict=None)], "auto"),
        ([tool(parameters={"properties": {}})], "auto"),
        ([tool(str(i)) for i in range(128)], "auto"),
    ],
)
def test_what_makes_sense_passes(tools, tool_choice):
    validate_tools(tools, tool_choice, "hermes")


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([], "tools has 0"),
        ({}, "tools is {}"),
        ([tool(str(i)) for i in range(129)], "has 129"),
        (["get"], r"tools\[0\] is 'get'"),
        ([tool(), {"type": "custom", "custom": {"name": "x"}}], r"tools\[1\] is .*custom"),
        ([{"function": {"name": "get"}}], r"tools\[0\] is"),
        ([{"type": "function"}], r"tools\[0\] is"),
        ([tool(None)], r"tools\[0\].function.name is None"),
        ([tool("")], "name is ''"),
        ([tool("get weather")], "name is 'get weather'"),
        ([tool("get\n")], r"name is 'get\\n'"),
        ([tool("gét")], "name is 'gét'"),
        ([tool("a" * 65)], "name is 'aaa"),
        ([tool("a"), tool("b"), tool("a")], r"tools\[2\].function.name is 'a'.*tools\[0\] has it"),
        ([tool(description=5)], r"tools\[0\].function.description is 5"),
        ([tool(strict="yes")], r"tools\[0\].function.strict is 'yes'"),
        ([tool(parameters=[])], r"tools\[0\].function.parameters is \[\]"),
        ([tool(parameters={"type": "string"})], r"tools\[0\].function.parameters.type is 'string'"),
        ([tool(parameters={"type": ["object", "null"]})], "parameters.type is"),
        ([tool(parameters={"type": "object", "properties": ["a"]})], r"parameters.properties is \['a'\]"),
        ([tool(parameters={"properties": {"a": "integer"}})], "parameters.properties.a is 'integer'"),
        ([tool(parameters={"required": "a"})], "parameters.required is 'a'"),
        ([tool(parameters={"required": [1]})], r"parameters.required is \[1\]"),
    ],
)
def test_tools_that_make_no_sense(tools, says):
    with pytest.raises(ParameterError, match=says) as refused:
        validate_tools(tools, "auto", "hermes")
    assert refused.value.parameter == "tools"


@pytest.mark.parametrize(
    ("tools", "tool_choice", "tool_format", "says"),
    [
        (None, "auto", "hermes", "no tools"),
        (None, "required", "hermes", "no tools"),
        (None, named("get"), "hermes", "no tools"),
        ([tool()], "any", "hermes", "is 'any'"),
        ([tool()], 5, "hermes", "is 5"),
        ([tool()], {}, "hermes", "is {}"),
        ([tool()], {"type": "function"}, "hermes", "is {'type': 'function'}"),
        ([tool()], {"type": "function", "name": "get"}, "hermes", "is {'type'"),
        ([tool()], {"type": "custom", "function": {"name": "get"}}, "hermes", "is {'type': 'custom'"),
        ([tool()], {"type": "function", "function": {"name": 1}}, "hermes", "is {'type'"),
        ([tool()], named("got"), "hermes", "'got', which is not among the tools"),
        ([tool()], "auto", None, "--tool-call-parser"),
        ([tool()], None, None, "--tool-call-parser"),
    ],
)
def test_choices_that_make_no_sense(tools, tool_choice, tool_format, says):
    with pytest.raises(ParameterError, match=says) as refused:
        validate_tools(tools, tool_choice, tool_format)
    assert refused.value.parameter == "tool_choice"


def test_without_a_format_calls_can_still_be_forced():
    for tool_choice in ("none", "required", named("get")):
        validate_tools([tool()], tool_choice, None)


def test_what_forces_a_call():
    assert is_forced("required")
    assert is_forced(named("get"))
    assert not any(map(is_forced, ("auto", "none", None)))
