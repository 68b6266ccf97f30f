"""Tool calls are told from content, in both formats; what is no call stays content, to the character."""

import json

import pytest

from lightvllm.server.parsing import ContentDelta, ToolCallDelta, make_output_parser
from tests.server.parsing.outputs import FUNCTIONS, TOOLS, calls_of, content_of, parse

HARD_ARGUMENTS = [
    "{}",
    '{"city": "Paris"}',
    '{"text": "</tool_call> <tool_call> <think> </think> <|python_tag|> <|eom_id|>"}',
    '{"text": "} ] { [ \\" \\\\", "more": {"}": ["]", {"{": "\\\\\\""}]}}',
    '{"text": "\\u00e9\\ud83d\\ude00 é 😀 \\n"}',
    '{ "a" : [ 1.5e3 , true , null ] ,\n "b" : { } }',
]


def call_text(tool_format: str, name: str, arguments: str) -> str:
    if tool_format == "hermes":
        return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
    return f'{{"name": "{name}", "parameters": {arguments}}}'


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
@pytest.mark.parametrize("arguments", HARD_ARGUMENTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_come_out_as_the_model_wrote_them(tool_format, arguments, name):
    assert parse(call_text(tool_format, name, arguments), tool_format) == [ToolCallDelta(0, name, arguments)]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
@pytest.mark.parametrize(
    "order",
    [
        '{{"name": "get", "{key}": {arguments}}}',
        '{{"{key}": {arguments}, "name": "get"}}',
        '{{"type": "function", "name": "get", "{key}": {arguments}}}',
        '{{"{key}": {arguments}, "name": "get", "type": "function"}}',
        '\n {{"name":"get","{key}":{arguments}}}\n ',
    ],
)
@pytest.mark.parametrize("key", ["arguments", "parameters"])
def test_keys_come_in_any_order(tool_format, order, key):
    text = order.format(key=key, arguments=HARD_ARGUMENTS[2])
    if tool_format == "hermes":
        text = f"<tool_call>{text}</tool_call>"
    assert parse(text, tool_format) == [ToolCallDelta(0, "get", HARD_ARGUMENTS[2])]


@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
def test_hermes_parallel_calls(between, end):
    texts = [call_text("hermes", name, arguments) for name, arguments in zip(FUNCTIONS, HARD_ARGUMENTS, strict=False)]
    deltas = parse(between.join(texts) + end, "hermes")
    assert deltas == [ToolCallDelta(i, FUNCTIONS[i], HARD_ARGUMENTS[i]) for i in range(len(FUNCTIONS))]


@pytest.mark.parametrize("tag", ["", "<|python_tag|>"])
@pytest.mark.parametrize("between", ["", ";", "; ", "\n", " ;\n"])
@pytest.mark.parametrize("end", ["", "<|eom_id|>", "<|eot_id|>", ";", "\n"])
def test_llama_parallel_calls(tag, between, end):
    texts = [call_text("llama3_json", *call) for call in zip(FUNCTIONS, HARD_ARGUMENTS, strict=False)]
    deltas = parse(tag + between.join(texts) + end, "llama3_json")
    assert deltas == [ToolCallDelta(i, FUNCTIONS[i], HARD_ARGUMENTS[i]) for i in range(len(FUNCTIONS))]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
def test_arguments_are_streamed_and_the_name_comes_once(tool_format):
    text = call_text(tool_format, "get_weather", '{"city": "Paris", "days": 3}')
    parser = make_output_parser(tool_format=tool_format, reasoning="off", tools=TOOLS)
    shown = ""
    for i, char in enumerate(text):
        for delta in parser.push(char):
            assert isinstance(delta, ToolCallDelta)
            assert delta.name == (None if shown else "get_weather")
            shown += delta.arguments
        start = text.index('{"city"')
        # Every character of the arguments is out as soon as it is in.
        assert shown == text[start : max(start, min(i + 1, start + 28))]
    assert parser.finish(is_cut=False) == []


def test_content_around_calls_is_kept_and_the_blanks_beside_a_call_are_not():
    call = call_text("hermes", "get", "{}")
    assert parse(f"Let me see.\n\n{call}\n", "hermes") == [ContentDelta("Let me see."), ToolCallDelta(0, "get", "{}")]
    assert parse(f"One \n{call}\nTwo {call} Three\n", "hermes") == [
        ContentDelta("One"),
        ToolCallDelta(0, "get", "{}"),
        ContentDelta("\nTwo"),
        ToolCallDelta(1, "get", "{}"),
        ContentDelta(" Three\n"),
    ]
    call = call_text("llama3_json", "get", "{}")
    assert parse(f"See:\n<|python_tag|>{call}; so.", "llama3_json") == [
        ContentDelta("See:"),
        ToolCallDelta(0, "get", "{}"),
        ContentDelta("; so."),
    ]


NO_CALLS_HERMES = [
    "",
    "\n",
    "a < b, <tool_cal> <<tool_call <TOOL_CALL> </tool_call> <",
    "<tool_call>not json</tool_call>",
    "<tool_call>\n[1]\n</tool_call>\n",
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name" "get"}</tool_call>',
    '<tool_call>{"name": "unknown", "arguments": {"a": 1}}</tool_call> done',
    '<tool_call>{"name": "get_weathers", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "ge", "arguments": {}}</tool_call>',
    '<tool_call>{"name": null, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "get", "arguments": "{}"}</tool_call>',
    '<tool_call>{"name": "get", "arguments": 5}</tool_call>',
    '<tool_call>{"name": "get", "arguments": [{}]}</tool_call>',
    '<tool_call>{"name": "get", "name": "get"}</tool_call>',
    '<tool_call>{"name": "get", "args": {}}</tool_call>',
    '<tool_call>{"arguments": {"a": 1}, "name": "unknown"}</tool_call>',
    '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    '<tool_call>{"arguments": {"a": <b>}, "name": "get"}</tool_call>',
    '<tool_call>\n{"name": "get"',  # the model itself ended here
    '<tool_call>\n{"arguments": {"a": "',
    'Write {"name": "get", "arguments": {}} there.',
]
NO_CALLS_LLAMA = [
    "",
    "{",
    "{}",
    '{"name": "get"}',
    ' {"answer": {"name": "get", "parameters": {}}}',
    '{"name": "Ada", "parameters": {}}',
    '{"name": "get", "parameters": "x"}',
    '{"name": "get", "parameters"',
    '{"parameters": {"a": 1}, "name": "unknown"}; {"name": "get", "parameters": {}}',
    '[{"name": "get", "parameters": {}}]',
    'Sure: {"name": "get", "parameters": {}}',
    '```json\n{"name": "get", "parameters": {}}\n```',
    "a <| b <|python_ta",
]


@pytest.mark.parametrize("text", NO_CALLS_HERMES)
def test_hermes_what_is_no_call_is_content_unchanged(text):
    assert parse(text, "hermes") == ([ContentDelta(text)] if text else [])


@pytest.mark.parametrize("text", NO_CALLS_LLAMA)
def test_llama_what_is_no_call_is_content_unchanged(text):
    assert parse(text, "llama3_json") == ([ContentDelta(text)] if text else [])


def test_behind_what_is_no_call_a_call_is_found():
    call = call_text("hermes", "get", "{}")
    for text in ("<tool_call>\n", '<tool_call>{"name": "unknown"}</tool_call>', "<tool_call>{x"):
        assert parse(text + call, "hermes") == [ContentDelta(text.rstrip()), ToolCallDelta(0, "get", "{}")]


def test_a_tagged_call_without_arguments_has_none():
    assert parse('<tool_call>\n{"name": "get"}\n</tool_call>', "hermes") == [ToolCallDelta(0, "get", "{}")]
    assert parse('<|python_tag|>{"name": "get"}', "llama3_json") == [ToolCallDelta(0, "get", "{}")]


def test_arguments_with_open_brackets_end_at_the_tag():
    text = '<tool_call>\n{"name": "get", "arguments": {"a": [1\n</tool_call>\nSo.'
    assert parse(text, "hermes") == [ToolCallDelta(0, "get", '{"a": [1\n'), ContentDelta("\nSo.")]


def test_brackets_too_many_are_no_content():
    text = '<tool_call>\n{"name": "get", "arguments": {}}}\n</tool_call>\n' + call_text("hermes", "get", "{}")
    assert parse(text, "hermes") == [ToolCallDelta(0, "get", "{}"), ToolCallDelta(1, "get", "{}")]


@pytest.mark.parametrize("rest", [', "id": "a}b"', ', "x": [{"y": 1}], "z": null', ","])
def test_what_else_a_call_has_is_left_out(rest):
    text = f'{{"name": "get", "parameters": {{}}{rest}}}'
    assert parse(f"<tool_call>{text}</tool_call>", "hermes") == [ToolCallDelta(0, "get", "{}")]
    assert parse(text, "llama3_json") == [ToolCallDelta(0, "get", "{}")]


def test_a_missing_closing_tag_ends_nothing():
    text = '<tool_call>\n{"name": "get", "arguments": {}}\n' + call_text("hermes", "add-1", "{}")
    assert parse(text, "hermes") == [ToolCallDelta(0, "get", "{}"), ToolCallDelta(1, "add-1", "{}")]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
def test_text_is_held_back_only_while_it_may_become_a_call(tool_format):
    parser = make_output_parser(tool_format=tool_format, reasoning="off", tools=TOOLS)
    assert parser.push("if a <") == [ContentDelta("if a")]
    assert content_of(parser.push(" b")) == " < b"
    assert content_of(parser.push(" and c")) == " and c"
    if tool_format == "llama3_json":
        parser = make_output_parser(tool_format=tool_format, reasoning="off", tools=TOOLS)
        assert parser.push('{"') == []
        assert parser.push("t") == []  # "type" is a key of calls
        assert parser.push("i") == [ContentDelta('{"ti')]


def test_only_special_tokens_that_were_kept_for_the_parser_are_dropped():
    text = "Hello<|eom_id|> there<|eot_id|>"
    assert parse(text, "llama3_json") == [ContentDelta("Hello there")]
    assert parse(text, "llama3_json", skip_special_tokens=False) == [ContentDelta(text)]
    assert parse("<|python_tag|>search.call()", "llama3_json") == [ContentDelta("search.call()")]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
@pytest.mark.parametrize("off", [{"tool_choice": "none"}, {"is_constrained": True}])
def test_nothing_is_a_call_where_none_can_be(tool_format, off):
    text = call_text(tool_format, "get", "{}")
    assert parse(text, tool_format, **off) == [ContentDelta(text)]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
def test_without_parallel_calls_only_the_first_comes_out(tool_format):
    first, second = call_text(tool_format, "get", '{"a": 1}'), call_text(tool_format, "add-1", "{}")
    text = f"{first}\n{second}"
    assert parse(text, tool_format, parallel_tool_calls=False) == [ToolCallDelta(0, "get", '{"a": 1}')]
    assert parse(text[:-5], tool_format, is_cut=True, parallel_tool_calls=False) == [
        ToolCallDelta(0, "get", '{"a": 1}')
    ]
    assert len(calls_of(parse(text, tool_format))) == 2


def test_a_named_choice_knows_only_its_function():
    text = call_text("hermes", "get", "{}")
    named = {"type": "function", "function": {"name": "get"}}
    other = {"type": "function", "function": {"name": "get_weather"}}
    assert calls_of(parse(text, "hermes", tool_choice=named)) == [("get", "{}")]
    assert parse(text, "hermes", tool_choice=other) == [ContentDelta(text)]


def test_a_model_without_a_format_calls_in_bare_json_when_forced():
    text = call_text("llama3_json", "get", "{}")
    assert parse(text, None, tool_choice="required") == [ToolCallDelta(0, "get", "{}")]
    assert parse(text, None, tool_choice="auto") == [ContentDelta(text)]


def test_a_real_json_encoder_is_understood():
    arguments = {"q": 'a "b" \\ </tool_call>\n\t\u2028 😀', "n": [1, {"x": None}], "": {}}
    for ascii_only in (True, False):
        for indent in (None, 2):
            call = {"name": "get_weather", "arguments": arguments}
            body = json.dumps(call, ensure_ascii=ascii_only, indent=indent)
            [(name, text)] = calls_of(parse(f"<tool_call>\n{body}\n</tool_call>", "hermes"))
            assert name == "get_weather"
            assert json.loads(text) == arguments
            assert text in body
