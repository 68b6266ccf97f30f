"""Each kind of structure: what fits it and what does not, what is malformed, and how JSON is spaced."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from lightvllm.engine.messages import AddRequest
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams
from lightvllm.structured import check_structured_outputs
from tests.structured.walks import ENDS, accepts, allowed, matcher, texts

KINDS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"regex": "[a-z]{2,3}@x"}, ["ab@x", "abc@x"], ["", "a@x", "ab@xx", " ab@x"]),
    ({"regex": "^a|b$"}, ["a", "b"], ["ax", "xb", "^a"]),
    ({"regex": "cost \\$"}, ["cost $"], ["cost \\", "cost "]),
    ({"regex": 'a/"\n.*'}, ['a/"\nx'], ["a/", 'a/"\nx\n']),
    ({"choice": ["a", "ab", "", 'q"\\\n\x00é😀']}, ["a", "ab", "", 'q"\\\n\x00é😀'], ["b", "aba", "q"]),
    ({"grammar": 'start: "f(" ARGS ")"\nARGS: /[a-z]/ ("," /[a-z]/)*\n'}, ["f(a)", "f(a,b)"], ["f()", "f(a,)"]),
    ({"grammar": 'start: e // sums\ne: "x" | "(" e "+" e ")"\n'}, ["x", "(x+(x+x))"], ["(x+x", "x+x"]),
    ({"grammar": 'root ::= "yes" | "no" tail*\ntail ::= [a-c]\n'}, ["yes", "no", "nocab"], ["yesa", "nod"]),
    ({"grammar": 'start: "<" %json {"type":"integer","minimum":8} ">"'}, ["<8>", "<123>"], ["<7>", "< 8>", "8"]),
    ({"json_object": True}, ["{}", '{"a":[1,{"b":null}]}'], ["[]", "1", '"{}"', " {}", "{ }", '{"a": 1}', "{}\n"]),
    ({"json": {"type": "array"}}, ["[]", "[1,2]"], ["{}", "[1, 2]"]),
    ({"json": '{"const": 1}'}, ["1"], ["2", '"1"']),
]


@pytest.mark.parametrize(("structure", "fitting", "others"), KINDS, ids=lambda value: str(value)[:40])
def test_what_fits(structure: dict[str, Any], fitting: list[str], others: list[str]) -> None:
    params = StructuredOutputsParams(**structure)
    check_structured_outputs(params)
    assert [text for text in fitting if not accepts(params, text)] == []
    assert [text for text in others if accepts(params, text)] == []


def test_walks_follow_a_regular_expression() -> None:
    found = texts(30, regex="(ab|c[0-9]{1,3}é)*x?")
    assert len(found) == 30
    assert all(re.fullmatch("(ab|c[0-9]{1,3}é)*x?", text) for text in found)
    assert len(set(found)) > 5


MALFORMED: list[tuple[str, dict[str, Any]]] = [
    ("regex: .*unclosed group", {"regex": "("}),
    ("regex: .*look-around", {"regex": "(?=a)a"}),
    ("regex: nothing fits", {"regex": "[a&&b]"}),
    ("choice is empty", {"choice": []}),
    ("grammar has no rule 'start:'", {"grammar": 'x: "a"'}),
    ("grammar has no rule 'start:'.*Rule 'x' not found", {"grammar": "root ::= x"}),
    ("grammar: .*unknown name", {"grammar": "start: x"}),
    ("grammar: nothing fits", {"grammar": 'start: start "x"'}),
    ("begins nothing that ends in its line", {"grammar": 'start: "a'}),
    ("is a token", {"grammar": 'start: <|im_end|> "a"'}),
    ("is a token", {"grammar": "start: <[5]>"}),
    ("max_tokens=3.* not supported", {"grammar": "start: t\nt[max_tokens=3]: /.*/"}),
    ("temperature=0.3.* not supported", {"grammar": "start: t\nt [temperature=0.3] : /.*/"}),
    ("%declare is not supported", {"grammar": '%declare X\nstart: "a"'}),
    ("%regex is not supported", {"grammar": 'start: %regex {"substring_chars": "abc"}'}),
    ("%llguidance takes no options", {"grammar": '%llguidance {"allow_invalid_utf8": true}\nstart: "a"'}),
    ("'not' at # cannot be enforced", {"grammar": 'start: %json {"not": {}}'}),
    ("%json is no JSON", {"grammar": "start: %json {"}),
    ("space, ", {"json_object": True, "whitespace_pattern": "x?"}),
    ("space, ", {"json_object": True, "whitespace_pattern": "\\s*"}),
    ("whitespace_pattern .*unclosed group", {"json_object": True, "whitespace_pattern": "("}),
    ("whitespace_pattern must have", {"json_object": True, "whitespace_pattern": ""}),
]


@pytest.mark.parametrize(("words", "structure"), MALFORMED, ids=lambda value: str(value)[:60])
def test_what_is_malformed_is_refused_with_the_reason(words: str, structure: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        check_structured_outputs(StructuredOutputsParams(**structure))
    assert caught.value.parameter == "structured_outputs"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "structure"),
    [
        ("exactly one of json, regex, choice, grammar, json_object, not none", {}),
        ("not json and regex", {"json": {}, "regex": "a"}),
        ("not none", {"json_object": False}),
        ("json is int", {"json": 3}),
        ("json is not a JSON schema", {"json": {"enum": {3}}}),
        ("json is not a JSON schema", {"json": {"const": float("nan")}}),
        ("regex is int", {"regex": 3}),
        ("choice must be a list of strings", {"choice": "ab"}),
        ("choice must be a list of strings", {"choice": [1]}),
        ("json_object is 1", {"json_object": 1}),
        ("disable_any_whitespace is None", {"json": {}, "disable_any_whitespace": None}),
        ("whitespace_pattern only means", {"regex": "a", "whitespace_pattern": " "}),
        ("disable_additional_properties only means", {"regex": "a", "disable_additional_properties": True}),
        ("surrogate", {"regex": "\ud800"}),
        ("surrogate", {"json": {"const": "\ud800"}}),
    ],
)
def test_what_is_no_structure_is_refused_when_it_is_made(words: str, structure: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=words) as caught:
        StructuredOutputsParams(**structure)
    assert caught.value.parameter == "structured_outputs"


def test_white_space_as_asked_for() -> None:
    free = StructuredOutputsParams(json_object=True, disable_any_whitespace=False)
    few = StructuredOutputsParams(json_object=True, whitespace_pattern="[ \\n]{0,2}")
    for params in (free, few):
        check_structured_outputs(params)
        assert accepts(params, '{"a": 1}')
        assert accepts(params, '{ "a" :[\n]}')
        assert not accepts(params, " {}")
    assert accepts(free, '{\t "a":' + " " * 99 + "1}")
    assert not accepts(few, '{"a":   1}')
    assert not accepts(few, '{"a":\t1}')


def test_only_the_end_follows_what_is_complete() -> None:
    params = StructuredOutputsParams(choice=["ab", "abc"])
    assert allowed(matcher(params)) == [ord("a")]
    assert allowed(matcher(params, b"ab")) == [ord("c"), *ENDS]
    assert allowed(matcher(params, b"abc")) == ENDS
    ended = matcher(params, b"abc")
    ended.consume([ENDS[1]])
    assert ended.error is None


def test_a_token_that_does_not_fit_is_an_error_from_then_on() -> None:
    broken = matcher(StructuredOutputsParams(choice=["ab"]), b"x")
    assert "cannot be followed" in str(broken.error)
    assert allowed(broken) == []
    broken.consume([ord("a")])
    assert allowed(broken) == []


def test_travels_as_message() -> None:
    for structure, _, _ in [*KINDS, ({"json": {"maximum": 10**40}}, [], [])]:
        params = SamplingParams(structured_outputs=StructuredOutputsParams(**structure))
        message = AddRequest("x", [1], params, 3)
        arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=AddRequest)
        assert arrived == message
        assert isinstance(arrived.sampling_params.structured_outputs, StructuredOutputsParams)
    with pytest.raises(msgspec.ValidationError, match="exactly one"):
        msgspec.convert({"json": "{}", "regex": "a"}, StructuredOutputsParams)


def test_checks_in_threads() -> None:
    with ThreadPoolExecutor(4) as threads:
        jobs = [
            threads.submit(check_structured_outputs, StructuredOutputsParams(**structure))
            for structure, _, _ in KINDS * 5
        ]
        assert all(job.result() is None for job in jobs)


def test_needs_no_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; import lightvllm.structured.matcher"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
