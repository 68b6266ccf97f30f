"""Grammars for calls: what they let through, by llguidance itself, and that the parser reads it as calls."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.server.parsing import ReasoningState, forced_grammar, strict_grammar
from lightvllm.server.parsing.grammar import arguments_schema
from lightvllm.structured.grammar import LIMITS, to_grammar
from tests.server.parsing.outputs import calls_of, parse

BYTES = LLTokenizer("byte")
SEARCH = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "maxLength": 8},
        "limit": {"type": "integer", "minimum": 1, "maximum": 20},
        "tags": {"type": "array", "items": {"enum": ["</tool_call>", "b"]}, "maxItems": 2},
    },
    "required": ["query"],
}
NUMBER = {
    "$ref": "#/$defs/n",
    "$defs": {
        "n": {
            "type": "object",
            "properties": {"n": {"type": "integer"}},
            "required": ["n"],
            "additionalProperties": False,
        }
    },
}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SEARCH}},
    {"type": "function", "function": {"name": "get"}},
    {"type": "function", "function": {"name": "add-1", "parameters": NUMBER}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
WEATHER = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"query":"x"}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"query":"x"}}',
}
GET = {
    "hermes": '<tool_call>\n{"name": "get", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "get", "parameters": {}}',
}
BETWEEN = {"hermes": "\n", "llama3_json": "; "}
FORMATS = ["hermes", "llama3_json"]


def follow(grammar: str) -> LLMatcher:
    """As the worker follows an output through it, with bytes for tokens."""
    matcher = LLMatcher(BYTES, to_grammar(StructuredOutputsParams(grammar=grammar)), limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(grammar: str, text: str) -> bool:
    """Whether the whole text is an output under the grammar."""
    matcher = follow(grammar)
    tokens = BYTES.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def random_output(grammar: str, seed: int, max_bytes: int = 400) -> tuple[str, bool]:
    """What a model without any sense writes under the grammar, and whether it came to the end."""
    draw = random.Random(seed)
    matcher = follow(grammar)
    tokens: list[int] = []
    for _ in range(max_bytes):
        mask = matcher.compute_bitmask()
        allowed = [token for token in range(BYTES.vocab_size) if mask[token // 8] >> token % 8 & 1]
        likely = [token for token in allowed if 32 <= token < 127] or allowed
        token = draw.choice(likely if draw.random() < 0.9 else allowed)
        if token == BYTES.eos_token:
            return BYTES.decode_str(tokens), True
        assert matcher.consume_token(token)
        tokens.append(token)
        if matcher.is_stopped():
            return BYTES.decode_str(tokens), True
    return BYTES.decode_str(tokens), False


@pytest.mark.parametrize("tool_format", FORMATS)
def test_required_is_one_call_or_more(tool_format):
    grammar = forced_grammar(TOOLS, "required", True, tool_format, "off")
    weather, get, between = WEATHER[tool_format], GET[tool_format], BETWEEN[tool_format]
    assert accepts(grammar, weather)
    assert accepts(grammar, get)
    assert accepts(grammar, between.join([weather, get, weather]))
    for text in ("", "Sure.", " " + get, get + " ", weather[:-1], "<think></think>" + get):
        assert not accepts(grammar, text)


@pytest.mark.parametrize("tool_format", FORMATS)
def test_without_parallel_calls_and_for_a_named_function_there_is_exactly_one(tool_format):
    weather, get, between = WEATHER[tool_format], GET[tool_format], BETWEEN[tool_format]
    grammar = forced_grammar(TOOLS, "required", False, tool_format, "off")
    assert accepts(grammar, weather)
    assert accepts(grammar, get)
    assert not accepts(grammar, between.join([weather, get]))
    grammar = forced_grammar(TOOLS, NAMED, True, tool_format, "off")
    assert accepts(grammar, weather)
    assert not accepts(grammar, get)
    assert not accepts(grammar, between.join([weather, weather]))


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ('{"query":"x"}', True),
        ('{"query":"x","limit":20,"tags":["b"]}', True),
        ('{"query": "x"}', False),
        ('{"query":"x",\n"limit":20}', False),
        ('{"query":"x","limit":21}', False),
        ('{"query":"x","tags":["c"]}', False),
        ('{"query":"x","other":1}', False),
        ('{"limit":1}', False),
        ("{}", False),
        ("5", False),
        ('"x"', False),
        ("null", False),
        ('[{"query":"x"}]', False),
    ],
)
def test_arguments_are_an_object_that_fits_the_parameters(tool_format, arguments, fits):
    text = WEATHER[tool_format].replace('{"query":"x"}', arguments)
    assert accepts(forced_grammar(TOOLS, NAMED, True, tool_format, "off"), text) is fits
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
    grammar = strict_grammar(strict, tool_format, "off")
    assert grammar is not None
    assert accepts(grammar, text) is fits


def test_references_and_missing_parameters():
    grammar = forced_grammar(TOOLS, "required", True, "llama3_json", "off")
    assert accepts(grammar, '{"name": "add-1", "parameters": {"n":1}}')
    assert not accepts(grammar, '{"name": "add-1", "parameters": {"n":"1"}}')
    assert not accepts(grammar, '{"name": "get", "parameters": {"n":1}}')


@pytest.mark.parametrize("tool_format", FORMATS)
@pytest.mark.parametrize(("state", "start"), [("possible", "<think>\n"), ("open", "")])
def test_a_reasoning_model_may_think_first(tool_format, state, start):
    grammar = forced_grammar(TOOLS, "required", True, tool_format, state)
    get, weather = GET[tool_format], WEATHER[tool_format]
    thought = start + f"Hm </thin\n{weather} <tool_call>{{\n</think>\n\n"
    assert accepts(grammar, thought + get)
    assert accepts(grammar, thought.rstrip("\n") + get)
    assert not accepts(grammar, thought)
    assert not accepts(grammar, thought + "So " + get)
    assert accepts(grammar, get) is (state == "possible")
    deltas = parse(thought + get, tool_format, state, tool_choice="required")
    assert calls_of(deltas) == [("get", "{}")]


@pytest.mark.parametrize("tool_format", [*FORMATS, None])
@pytest.mark.parametrize("state", ["off", "possible", "open"])
def test_any_forced_output_is_calls_that_fit_and_nothing_else(tool_format, state: ReasoningState):
    grammar = forced_grammar(TOOLS, "required", True, tool_format, state)
    schemas = {tool["function"]["name"]: arguments_schema(tool["function"].get("parameters")) for tool in TOOLS}
    num_ended = 0
    for seed in range(12):
        text, has_ended = random_output(grammar, seed)
        deltas = parse(text, tool_format, state, tool_choice="required", is_cut=not has_ended)
        assert [delta for delta in deltas if type(delta).__name__ == "ContentDelta"] == []
        calls = calls_of(deltas)
        num_ended += has_ended
        for name, arguments in calls if has_ended else calls[:-1]:
            assert name is not None
            jsonschema.validate(json.loads(arguments), schemas[name])
        assert calls or not has_ended
    assert num_ended or state != "off"  # thoughts drawn at random rarely come to an end


def test_strict_functions_leave_the_text_free_and_bind_the_calls():
    strict = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, *TOOLS[1:]]
    grammar = strict_grammar(strict, "hermes", "possible")
    assert grammar is not None
    weather, get = WEATHER["hermes"], GET["hermes"]
    for text in (
        "",
        "Hi <tool_ {x}\n",
        weather,
        f"Hi.\n{weather}\n{get} bye",
        f"<think>\nA <tool_call> is\n</think>\n{get}",
    ):
        assert accepts(grammar, text)
    loose = get.replace("{}", '{"any":[1]}')
    assert accepts(grammar, loose)
    for text in (
        "Hi <tool_call>x",
        "<tool_call>\n{}",
        weather.replace("get_weather", "unknown"),
        f"{weather}<tool_call>{{",
    ):
        assert not accepts(grammar, text)

    grammar = strict_grammar(strict, "llama3_json", "off")
    assert grammar is not None
    weather, get = WEATHER["llama3_json"], GET["llama3_json"]
    for text in ("", "Hi {x}\n", weather, f"{weather}; {get}"):
        assert accepts(grammar, text)
    for text in ("{", ' \n{"title": 1}', weather + "x"):
        assert not accepts(grammar, text)


def test_nothing_is_enforced_where_no_function_is_strict():
    assert strict_grammar(TOOLS, "hermes", "off") is None
    assert strict_grammar(TOOLS, None, "off") is None


@pytest.mark.parametrize(
    ("parameters", "takes_others"),
    [
        (None, False),
        ({}, True),
        ({"type": "object"}, True),
        ({"properties": {}}, False),
        ({"properties": {"a": {}}}, False),
        ({"properties": {"a": {}}, "required": ["b"]}, True),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, True),
        ({"properties": {"a": {}}, "patternProperties": {"^x": {}}}, True),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}, True),
    ],
)
def test_a_function_takes_the_arguments_it_names(parameters, takes_others):
    schema = arguments_schema(parameters)
    assert schema["type"] == "object"
    assert (schema.get("additionalProperties", True) is not False) is takes_others
    assert parameters is None or "type" not in parameters or parameters["type"] == "object"


def test_descriptions_do_not_count():
    tools = []
    for i in range(128):
        parameters = {"description": "x" * 2000, "properties": {"a": {"type": "string", "description": "y" * 2000}}}
        tools.append({"type": "function", "function": {"name": f"f{i}", "parameters": parameters}})
    grammar = forced_grammar(tools, "required", True, "llama3_json", "off")
    assert accepts(grammar, '{"name": "f127", "parameters": {"a":"b"}}; {"name": "f1", "parameters": {}}')


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {"type": "string"}}, r"tools\[1\].function.parameters: the keyword 'not' at #/properties/a cannot"),
        ({"if": {}, "then": {}}, r"tools\[1\].function.parameters: the keyword 'if'"),
        ({"$ref": "http://other"}, r"tools\[1\].function.parameters: \$ref"),
        ({"type": "strin"}, r"tools\[1\].function.parameters: type"),
        ({"type": "string", "pattern": "(?=a)"}, r"tools\[1\].function.parameters: .*look-ahead"),
    ],
)
def test_parameters_that_cannot_be_enforced_are_refused_by_their_place(schema, says):
    parameters = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    tools = [TOOLS[0], {"type": "function", "function": {"name": "get", "parameters": parameters, "strict": True}}]
    with pytest.raises(ParameterError, match=says) as refused:
        forced_grammar(tools, "required", True, "hermes", "possible")
    assert refused.value.parameter == "tools"
    with pytest.raises(ParameterError, match=says):
        strict_grammar(tools, "llama3_json", "off")
    tools[1]["function"]["strict"] = False
    assert strict_grammar(tools, "hermes", "off") is None
    assert forced_grammar(tools, NAMED, True, "hermes", "off")


def test_tools_that_are_too_much_together_are_refused():
    properties = {f"{'p' * 60}{i}": {"type": "integer"} for i in range(60)}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"properties": properties}}}
        for i in range(128)
    ]
    with pytest.raises(ParameterError, match="tools: calls of them cannot be enforced") as refused:
        forced_grammar(tools, "required", True, "hermes", "off")
    assert refused.value.parameter == "tools"
