"""Both parsers together: what they make of an output does not depend on how it is cut, or on where it ends."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightvllm.server.parsing import ContentDelta, Delta, ReasoningDelta, ToolCallDelta, make_output_parser
from lightvllm.server.parsing.deltas import merged
from tests.server.parsing.outputs import FUNCTIONS, TOOLS, calls_of, content_of, cuts, parse, reasoning_of

THINKING = "<think>\nIs <tool_call> </thin a tag?\n\n</think>\n\n"
HERMES = [
    THINKING
    + 'Hi. \n<tool_call>\n{"name": "get", "arguments": {"a": "</tool_call>\\"}", "b": "\\u00e9é😀"}}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {"x": [{}]}, "name": "add-1"}\n</tool_call>\nBye.',
    '<tool_call>{"name": "get", "arguments": {"a": [1}}</tool_call> <tool_call>{"name": "no", "arguments": {}}',
    '<tool_call>\n<tool_call>{"name": "get"}}</tool_call><|im_end|>\n<tool_call>{"arguments": {}, "name": "ge"',
    'a<b<tool_call>{"name": "get", "arguments": {"t": "<think>\\\\"}, "id": "}"}\n<tool_call>{"name": "get"',
    " <thi </think> </tool_call>\n<tool_cal",
]
LLAMA = [
    THINKING + '{"name": "get", "parameters": {"a": "}};\\"", "b": [{}, "<|eom_id|>"]}}; '
    '{"parameters": {}, "name": "add-1"}<|eom_id|>',
    'Hi.\n<|python_tag|>{"type": "function", "name": "get"}\n{"name": "get", "parameters": {"é": "\\ud83d"}} ; {"": 1}',
    ' {"name": "get_weather", "parameters": {"a": [}}<|eot_id|> and {"name": "get", "parameters": {}}',
    '{"parameters": {"name": "get"}, "name": "gets"}<|python_tag|>x<|python',
    '{"name": "get", "parameters": {}};',
]
EXAMPLES = [("hermes", text) for text in HERMES] + [("llama3_json", text) for text in LLAMA]


@pytest.mark.parametrize(("tool_format", "text"), EXAMPLES)
@pytest.mark.parametrize("state", ["open", "possible", "off"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_the_cuts_do_not_matter(tool_format, text, state, is_cut):
    whole = parse(text, tool_format, state, is_cut=is_cut)
    for pieces in cuts(text, max_pairs=1500):
        assert parse(pieces, tool_format, state, is_cut=is_cut) == whole, pieces


# Pieces of which outputs are made that are malformed in every way.
FRAGMENTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "<|eom_id|>", "<|eot_id|>", "<|im_end|>"),
    *('{"name": "get", "arguments": {', '{"name": "get", "parameters": {"a": "', '{"name": "', '"arguments": {', "get"),
    *(
        '{"arguments": {}, ',
        '"name": "add-1"',
        '"}',
        "}",
        "{",
        "]",
        '"',
        "\\",
        ",",
        ";",
        ":",
        "<",
        "</",
        "\n",
        " ",
        "x",
        "é😀",
    ),
    *(
        '{"name": "get_weather", "parameters": {"c": "\\u00e9"}}',
        '<tool_call>\n{"name": "get"}\n</tool_call>',
        "tool_call>",
    ),
]
soups = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


@st.composite
def cut_soups(draw: st.DrawFn) -> tuple[str, list[str]]:
    text = draw(soups)
    at = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [text[i:j] for i, j in zip([0, *at], [*at, len(text)], strict=True)]


FORMATS = st.sampled_from(["hermes", "llama3_json", None])
STATES = st.sampled_from(["open", "possible", "off"])


@settings(max_examples=300, deadline=None)
@given(cut_soups(), FORMATS, STATES, st.booleans())
def test_the_cuts_do_not_matter_in_malformed_outputs(soup, tool_format, state, is_cut):
    text, pieces = soup
    whole = parse(text, tool_format, state, is_cut=is_cut)
    assert parse(pieces, tool_format, state, is_cut=is_cut) == whole
    assert parse(text, tool_format, state, is_cut=is_cut) == parse(list(text), tool_format, state, is_cut=is_cut)


@settings(max_examples=300, deadline=None)
@given(soups, FORMATS, STATES)
def test_no_character_is_made_up_or_lost(text, tool_format, state):
    deltas = parse(text, tool_format, state, skip_special_tokens=False)
    shown = [delta.arguments if isinstance(delta, ToolCallDelta) else delta.text for delta in deltas]
    rest = text
    for piece in shown:  # each in its turn, as it stands in the text
        if piece != "{}":  # the arguments of a call without any
            _, found, rest = rest.partition(piece)
            assert found
    if state == "off" and not calls_of(deltas):
        assert content_of(deltas) == text


@settings(max_examples=150, deadline=None)
@given(soups, FORMATS, STATES, st.booleans())
def test_no_delta_is_empty_and_the_name_comes_first_and_once(text, tool_format, state, is_cut):
    parser = make_output_parser(tool_format=tool_format, reasoning=state, tools=TOOLS, tool_choice="auto")
    num_calls = 0
    for delta in [delta for char in text for delta in parser.push(char)] + parser.finish(is_cut):
        if isinstance(delta, ToolCallDelta):
            assert delta.name or delta.arguments
            assert (delta.name is not None) == (delta.index == num_calls)
            num_calls = delta.index + 1
        else:
            assert delta.text


@settings(max_examples=300, deadline=None)
@given(soups, soups, FORMATS, STATES)
def test_what_is_handed_out_is_never_taken_back(start, end, tool_format, state):
    parser = make_output_parser(tool_format=tool_format, reasoning=state, tools=TOOLS, tool_choice="auto")
    before = merged(parser.push(start))
    after = parse([start, end], tool_format, state)
    assert [type(delta) for delta in before] == [type(delta) for delta in after[: len(before)]]
    assert calls_of(before)[:-1] == calls_of(after)[: max(0, len(calls_of(before)) - 1)]
    assert content_of(after).startswith(content_of(before))
    assert reasoning_of(after).startswith(reasoning_of(before))


# ---- well-formed outputs, and what must come of them

# Without a full tag, but with every beginning of one, and braces.
words = st.sampled_from(["Hi", "a < b", "<tool", "</think", "{x}", "[1]", "<|", "“é😀”", "\\", "name", "<<"])
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6) | st.sampled_from(FRAGMENTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def json_objects(draw: st.DrawFn) -> str:
    value = draw(st.dictionaries(st.text(max_size=4) | st.sampled_from(FRAGMENTS), json_values, max_size=3))
    return json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))


@st.composite
def outputs(draw: st.DrawFn, tool_format: str) -> tuple[str, list[Delta]]:
    """A well-formed output after a prompt that opened no <think>, and its deltas."""
    text, deltas = "", []
    if draw(st.booleans()):
        reasoning = draw(texts)
        text, deltas = f"<think>\n{reasoning}\n</think>\n\n", [ReasoningDelta(reasoning)]
    calls = draw(st.lists(st.tuples(st.sampled_from(FUNCTIONS), json_objects(), st.booleans()), max_size=3))
    content = draw(texts) if not calls or draw(st.booleans()) else ""
    if content:
        deltas.append(ContentDelta(content))
        text += content + ("\n" if calls else "")
    bodies = []
    for i, (name, arguments, name_first) in enumerate(calls):
        deltas.append(ToolCallDelta(i, name, arguments))
        parts = [f'"name": "{name}"', f'"{"arguments" if tool_format == "hermes" else "parameters"}": {arguments}']
        bodies.append("{" + ", ".join(parts if name_first else parts[::-1]) + "}")
    if tool_format == "hermes":
        text += "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    elif calls:
        text += "<|python_tag|>" * bool(content or draw(st.booleans())) + "; ".join(bodies)
    return text, deltas


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["hermes", "llama3_json"]), st.booleans())
def test_a_well_formed_output_comes_apart_into_what_it_was_made_of(data, tool_format, is_cut):
    text, expected = data.draw(outputs(tool_format))
    if is_cut and expected and isinstance(expected[-1], ContentDelta | ReasoningDelta):
        text += " ."  # an end that may become a tag is dropped where an output is cut
        expected[-1] = (
            type(expected[-1])(expected[-1].text + " .") if isinstance(expected[-1], ContentDelta) else expected[-1]
        )
        if isinstance(expected[-1], ReasoningDelta):
            text = text.removesuffix(" .")
    assert parse(text, tool_format, "possible", is_cut=is_cut) == expected
    assert parse(list(text), tool_format, "possible", is_cut=is_cut) == expected


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["hermes", "llama3_json"]))
def test_an_output_cut_anywhere_leaks_nothing(data, tool_format):
    text, expected = data.draw(outputs(tool_format))
    for end in range(len(text)):
        deltas = parse(text[:end], tool_format, "possible", is_cut=True)
        # Only the line break before a call, which nothing tells from the content's own, may be shown too much.
        assert content_of(expected).startswith(content_of(deltas).removesuffix("\n"))
        assert reasoning_of(expected).startswith(reasoning_of(deltas))
        calls = calls_of(deltas)
        for (name, arguments), (full_name, full_arguments) in zip(calls, calls_of(expected), strict=False):
            assert name == full_name
            assert full_arguments.startswith(arguments)
        assert calls[:-1] == calls_of(expected)[: max(0, len(calls) - 1)]


@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json"])
def test_a_call_that_is_cut_keeps_what_was_certain(tool_format):
    start = '<tool_call>\n{"name": "' if tool_format == "hermes" else '{"name": "'
    key = "arguments" if tool_format == "hermes" else "parameters"
    assert parse(start + "get", tool_format, is_cut=True) == []
    assert parse(start + 'get", "arg', tool_format, is_cut=True) == [ToolCallDelta(0, "get", "")]
    text = f'{start}get", "{key}": {{"a": "x'
    assert parse(text, tool_format, is_cut=True) == [ToolCallDelta(0, "get", '{"a": "x')]
    assert parse(text + '"}', tool_format, is_cut=True) == [ToolCallDelta(0, "get", '{"a": "x"}')]
    for end in ('"}}', '"}}\n', '"}}\n<', '"}}\n</tool_' if tool_format == "hermes" else '"}}; {"na'):
        assert parse(text + end, tool_format, is_cut=True) == [ToolCallDelta(0, "get", '{"a": "x"}')]


@pytest.mark.parametrize(
    ("tool_format", "start", "repeated"),
    [
        ("hermes", '<tool_call>{"name": "get", "arguments": {"a": "', "x\\n"),
        ("hermes", '<tool_call>{"arguments": {"a": "', "x<"),
        ("hermes", "<tool_call>{", "<tool_call>{"),
        ("hermes", "", "<tool_call>"),
        ("hermes", "", "<"),
        ("hermes", "", "\n"),
        ("hermes", "<think>", "</think"),
        ("hermes", "<think>", "\n"),
        ("llama3_json", '{"parameters": ', '{"a": '),
        ("llama3_json", "", '{"name": "get", "parameters": {}};'),
    ],
)
@pytest.mark.parametrize("size", [1, 1 << 30])
def test_time_is_linear_in_the_length(tool_format, start, repeated, size):
    def seconds(length: int) -> float:
        text = start + repeated * (length // len(repeated))
        pieces = [text[i : i + size] for i in range(0, len(text), min(size, len(text)))]
        parser = make_output_parser(tool_format=tool_format, reasoning="possible", tools=TOOLS)
        begin = time.process_time()
        for piece in pieces:
            parser.push(piece)
        parser.finish(is_cut=False)
        return time.process_time() - begin

    # 8 times the length takes 8 times as long, and 64 times if all is read again with each piece.
    assert min(seconds(80_000) for _ in range(2)) < 24 * max(min(seconds(10_000) for _ in range(3)), 1e-3)
