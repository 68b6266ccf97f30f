"""Structures made to hurt are refused, or cost little: to check, to compile, and at each token."""

import json
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured import check_structured_outputs
from tests.structured.walks import ENDS, allowed, matcher

# Seconds of this process's time; they take a tenth of it. Only a bound that is gone takes more.
CHECK_SECONDS = 1.0
TOKEN_SECONDS = 0.3


def word(seed: int, length: int) -> str:
    return bytes(np.random.default_rng(seed).integers(97, 123, length, dtype=np.uint8)).decode()


def obj(properties: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **keywords}


def ref(i: int) -> dict[str, str]:
    return {"$ref": f"#/$defs/d{i}"}


def chain(count: int, link: Callable[[int], Any]) -> dict[str, Any]:
    return {"$defs": {f"d{i}": link(i + 1) for i in range(count)} | {f"d{count}": {"type": "string"}}, **ref(0)}


def rules(count: int, name: str = "r") -> str:
    body = "".join(f'{name}{i}: "x" {name}{i + 1} | "y"\n' for i in range(count))
    return f'start: {name}0\n{body}{name}{count}: "a"\n'


# Each would take seconds or gigabytes, or overflow the stack of the process, were it not for the bounds.
REFUSED: dict[str, Callable[[], dict[str, Any]]] = {
    "nested 10,000 deep": lambda: {"json": '{"items":' * 10_000 + "{}" + "}" * 10_000},
    "nested 200 deep": lambda: {"json": '{"items":' * 200 + "{}" + "}" * 200},
    "nested in a const": lambda: {"json": '{"const":' + "[" * 900 + "]" * 900 + "}"},
    "brackets": lambda: {"json": "[" * 100_000},
    "megabytes": lambda: {"json": {"enum": ["a" * 5_000_000]}},
    "wide object": lambda: {"json": obj({f"p{i}": {} for i in range(1_900)})},
    "many objects": lambda: {"json": {"anyOf": [obj({f"a{i}": {}, f"b{i}": {}}) for i in range(1_000)]}},
    "objects in enum": lambda: {"json": {"enum": [{"a": i} for i in range(5_000)]}},
    "chain of references": lambda: {"json": chain(2_000, ref)},
    "chain through objects": lambda: {"json": chain(1_000, lambda i: obj({"a": ref(i)}))},
    "bomb of intersections": lambda: {"json": {"allOf": [{"anyOf": [{"minLength": i}] * 9} for i in range(9)]}},
    "bomb of references": lambda: {
        "json": chain(30, lambda i: {"allOf": [{"anyOf": [ref(i), {f"m{a}Length": i}]} for a in ("in", "ax")]})
    },
    "remainders": lambda: {"json": {"type": "integer", "multipleOf": 1_234_567}},
    "remainders combined": lambda: {"json": obj({f"a{i}": {"multipleOf": 9_000 + i} for i in range(50)})},
    "names by pattern": lambda: {"json": {"type": "object", "patternProperties": {f"^x{i}_": {} for i in range(500)}}},
    "long patterns": lambda: {"json": obj({f"a{i}": {"pattern": word(i, 900)} for i in range(50)})},
    "patterns at once": lambda: {"json": {"type": "string", "allOf": [{"pattern": f"a{i}.*b"} for i in range(15)]}},
    "repeated 4,000,000,000 times": lambda: {"regex": "a{4000000000}"},
    "repeated in a pattern": lambda: {"json": {"type": "string", "pattern": "x{0,99999}"}},
    "repeated in a grammar": lambda: {"grammar": "start: /x{99999}/"},
    "parentheses": lambda: {"regex": "(" * 1_500 + "a" + ")" * 1_500},
    "long expression": lambda: {"regex": "(ab)?" * 10_000},
    "50,000 choices": lambda: {"choice": [f"{i:x}" for i in range(50_000)]},
    "one long choice": lambda: {"choice": ["a" * 1_000_000]},
    "4,000 rules": lambda: {"grammar": rules(4_000)},
    "4,000 terminals": lambda: {"grammar": rules(4_000, "R")},
    "15,000 symbols": lambda: {"grammar": 'start: "a"' + " start?" * 15_000},
    "terminals doubling": lambda: {
        "grammar": "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"\n'
    },
    "parentheses in a grammar": lambda: {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "parentheses in GBNF": lambda: {"grammar": "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "schemas in a grammar": lambda: {
        "grammar": "start: " + " ".join(f'%json {{"multipleOf": {9_000 + i}}}' for i in range(99))
    },
}  # fmt: skip

# These are taken, so they must be followed: quickly, or with an error.
FOLLOWED: dict[str, Callable[[], dict[str, Any]]] = {
    "(a{1,1000}){1,1000}": lambda: {"regex": "(a{1,1000}){1,1000}"},
    "nested repetitions": lambda: {"regex": "((((a{1,30}){1,30}){1,30}){1,30}){1,30}"},
    "much to remember": lambda: {"regex": "(.*a.{100}){50}"},
    "all may be left out": lambda: {"regex": "a?b?" * 990},
    "forced literal": lambda: {"regex": "((abcdefghij){1000}){1000}"},
    "classes": lambda: {"regex": "((\\w{1,10000} ){1,10000}x?){10000}"},
    "remainders": lambda: {"json": {"type": "integer", "multipleOf": 9_973}},
    "400 optional properties": lambda: {"json": obj({f"p{i}": {"pattern": f"x{i}"} for i in range(400)})},
    "references doubling": lambda: {"json": chain(90, lambda i: {"anyOf": [ref(i), ref(i)]})},
    "references intersecting": lambda: {"json": chain(60, lambda i: {"allOf": [ref(i), ref(i)]})},
    "2,147,483,647 items": lambda: {"json": {"type": "array", "minItems": 2**31 - 1}},
    "rules doubling": lambda: {
        "grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1} | r{i + 1}\n" for i in range(400)) + 'r400: "a"\n'
    },
    "ambiguity": lambda: {"grammar": 'start: e\ne: e e | e e e | "a" | \n'},
    "nothing, often": lambda: {"grammar": "start: " + "a " * 900 + '\na: b*\nb: c?\nc: "x"*\n'},
    "rules one in another": lambda: {"grammar": rules(490)},
}  # fmt: skip

# Large as real ones are.
REAL: dict[str, Callable[[], dict[str, Any]]] = {
    "200 properties": lambda: {
        "json": obj({f"property_{i}": {"type": ["string", "integer"][i % 2]} for i in range(200)})
    },
    "200 required properties": lambda: {
        "json": obj({f"a{i}": {"type": "integer"} for i in range(200)}, required=[f"a{i}" for i in range(200)])
    },
    "500 choices": lambda: {"choice": [word(i, 20) for i in range(500)]},
    "500 values": lambda: {"json": {"enum": [word(i, 20) for i in range(500)]}},
    "40 functions": lambda: {
        "grammar": "start: " + " | ".join(f"f{i}" for i in range(40)) + "\n"
        + "".join(f'f{i}: "f{i}(" %json {json.dumps(obj({"a": {"type": "string"}}))} ")"\n' for i in range(40))
    },
    "2,000 characters of text": lambda: {"regex": "(.|\\n){1,2000}"},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_good_time(name: str) -> None:
    params = REFUSED[name]()
    start = time.process_time()
    with pytest.raises(ParameterError) as caught:
        check_structured_outputs(StructuredOutputsParams(**params))
    assert time.process_time() - start < CHECK_SECONDS
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", [*FOLLOWED, *REAL])
def test_followed_in_good_time(name: str) -> None:
    params = StructuredOutputsParams(**(FOLLOWED | REAL)[name]())
    start = time.process_time()
    check_structured_outputs(params)
    one = matcher(params)
    assert time.process_time() - start < CHECK_SECONDS
    rng = random.Random(0)
    for _ in range(50):
        start = time.process_time()
        choices = allowed(one)
        if choices and choices != ENDS and one.error is None:
            one.consume([rng.choice([token for token in choices if token not in ENDS])])
        assert time.process_time() - start < TOKEN_SECONDS
        if one.error is not None or choices == ENDS:
            break
    if name in REAL:
        assert one.error is None


def test_a_dictionary_nested_too_deep_to_be_written_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(ParameterError, match="nested too deep"):
        StructuredOutputsParams(json=schema)
    while schema:  # taken apart here, as Python would do it one in another
        schema = schema["items"]
