"""Structured output: whatever the model would write, the text has the form that was asked for."""

import enum
import json
import re
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.sdk.wire import Server, question

SEEDS = range(2)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Shelf(BaseModel, extra="forbid"):
    size: Size
    rows: Literal[1, 2, 3]


class Library(BaseModel, extra="forbid"):
    open: bool
    name: str = Field(max_length=12)
    shelves: list[Shelf] = Field(min_length=1, max_length=3)
    owner: str | None = Field(max_length=5)


LIBRARY: dict[str, Any] = Library.model_json_schema()
GRAMMAR = 'start: sum\nsum: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/'


def write(client: openai.OpenAI, seed: int = 0, **extra: Any) -> str:
    """What the default model writes at random; it ends by itself."""
    [choice] = client.chat.completions.create(
        model="default_model", messages=question(), temperature=1, seed=seed, max_tokens=500, extra_body=extra
    ).choices
    assert choice.finish_reason == "stop", choice.message.content
    return choice.message.content


@pytest.mark.parametrize("seed", SEEDS)
def test_json_objects(client: openai.OpenAI, seed: int) -> None:
    assert isinstance(json.loads(write(client, seed, response_format={"type": "json_object"})), dict)
    assert isinstance(json.loads(write(client, seed, structured_outputs={"json_object": True})), dict)


@pytest.mark.parametrize("seed", SEEDS)
def test_json_schemas(client: openai.OpenAI, seed: int) -> None:
    as_format = {"type": "json_schema", "json_schema": {"name": "library", "schema": LIBRARY, "strict": True}}
    for extra in (
        {"response_format": as_format},
        {"structured_outputs": {"json": LIBRARY}},
        {"structured_outputs": {"json": json.dumps(LIBRARY)}},
        {"guided_json": LIBRARY},
    ):
        jsonschema.validate(json.loads(write(client, seed, **extra)), LIBRARY)


@pytest.mark.parametrize("seed", SEEDS)
def test_parse_gives_the_pydantic_model(client: openai.OpenAI, seed: int) -> None:
    completion = client.chat.completions.parse(
        model="default_model", messages=question(), response_format=Library, seed=seed, temperature=1
    )
    parsed = completion.choices[0].message.parsed
    assert isinstance(parsed, Library)
    assert 1 <= len(parsed.shelves) <= 3


def test_the_stream_helper_parses(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "default_model", "messages": question(), "temperature": 1, "seed": 1}
    with client.chat.completions.stream(**options, response_format=Library) as stream:
        deltas = [event for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion().choices[0].message
    assert isinstance(final.parsed, Library)
    assert deltas[-1].snapshot == final.content


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("older", [False, True], ids=["structured_outputs", "guided"])
def test_regex_choice_and_grammar(client: openai.OpenAI, seed: int, older: bool) -> None:
    def ask(kind: str, value: Any) -> str:
        extra = {f"guided_{kind}": value} if older else {"structured_outputs": {kind: value}}
        return write(client, seed, **extra)

    pattern = r"(\d{1,3}\.){3}\d{1,3}|[a-f]{2,4} é"
    assert re.fullmatch(pattern, ask("regex", pattern))
    assert ask("choice", ["red", "reddish", "blue", "日本"]) in ["red", "reddish", "blue", "日本"]
    assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", ask("grammar", GRAMMAR))


def test_completions_are_structured_too(client: openai.OpenAI) -> None:
    extra = {"structured_outputs": {"json": LIBRARY}}
    completion = client.completions.create(
        model="default_model", prompt=["SELECT", "x"], temperature=1, n=2, seed=1, max_tokens=500, extra_body=extra
    )
    assert len(completion.choices) == 4
    for choice in completion.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.text), LIBRARY)


def test_json_is_compact_unless_white_space_is_wanted(client: openai.OpenAI) -> None:
    closed = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    compact = '{"a":1,"b":[1,2]}'
    assert (
        write(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": closed}})
        == compact
    )
    assert write(client, structured_outputs={"json": closed}) == compact
    assert write(client, guided_json=closed) == compact
    for extra in (
        {"structured_outputs": {"json": closed, "whitespace_pattern": " {2}"}},
        {"guided_json": closed, "guided_whitespace_pattern": " {2}"},
    ):
        spaced = write(client, **extra)
        assert spaced != compact
        assert spaced.replace("  ", "") == compact


def test_free_white_space(client: openai.OpenAI, server: Server) -> None:
    [space] = server.tokenize(" ")
    free = {"structured_outputs": {"json_object": True, "disable_any_whitespace": False}}
    options: dict[str, Any] = {"model": "default_model", "messages": question(), "logit_bias": {str(space): 100}}
    [choice] = client.chat.completions.create(**options, max_tokens=5, extra_body=free).choices
    assert choice.message.content.count(" ") >= 4
    compact = {"structured_outputs": {"json_object": True}}
    [choice] = client.chat.completions.create(**options, max_tokens=1, extra_body=compact).choices
    assert choice.message.content.startswith("{")


def test_objects_from_vllms_option(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    for seed in SEEDS:
        closed = {"json": schema, "disable_additional_properties": True}
        assert json.loads(write(client, seed, structured_outputs=closed)).keys() <= {"a"}


# Keywords that vLLM's grammars pass over. Each schema has a value that fits but for the keyword.
KEYWORDS = {
    "not": {"enum": ["a", "b"], "not": {"const": "a"}},
    "oneOf": {"oneOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"enum": [3, 20]}]},
    "if": {"type": "integer", "minimum": 0, "maximum": 9, "if": {"minimum": 5}, "then": {"const": 9}},
    "minimum": {"enum": [1, 2, 3], "minimum": 2},
    "maxLength": {"enum": ["abc", "a"], "maxLength": 2},
    "pattern": {"type": "string", "pattern": "^a+$", "maxLength": 3},
    "multipleOf": {"type": "integer", "minimum": 1, "maximum": 20, "multipleOf": 7},
    "uniqueItems": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2, "uniqueItems": True},
    "contains": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2, "contains": {"const": 2}},
    "prefixItems": {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False, "minItems": 2},
    "format": {"type": "string", "format": "date"},
    "additionalProperties": {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False},
    "minProperties": {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "maxProperties": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 1}},
        "additionalProperties": False,
        "maxProperties": 1,
    },
    "propertyNames": {"type": "object", "propertyNames": {"enum": ["a"]}, "additionalProperties": {"const": 1}},
    "patternProperties": {"type": "object", "patternProperties": {"^a$": {"const": 1}}, "additionalProperties": False},
    "dependentRequired": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 1}},
        "additionalProperties": False,
        "dependentRequired": {"a": ["b"]},
    },
    "dependentSchemas": {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": 1}},
        "additionalProperties": False,
        "dependentSchemas": {"a": {"required": ["b"]}},
    },
    "unevaluatedProperties": {"type": "object", "properties": {"a": {"const": 1}}, "unevaluatedProperties": False},
    "$ref": {"$defs": {"x": {"enum": [7]}}, "$ref": "#/$defs/x"},
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": 3, "maximum": 5},
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_is_enforced_or_refused_by_its_name(server: Server, keyword: str) -> None:
    schema = KEYWORDS[keyword]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    body = {"structured_outputs": {"json": schema}, "temperature": 2, "seed": 1, "n": 8, "max_tokens": 60}
    response = server.chat(**body)
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["param"] == "structured_outputs"
        assert keyword in error["message"]
        return
    assert response.status_code == 200, response.text
    for choice in response.json()["choices"]:
        if choice["finish_reason"] == "stop":
            validator.validate(json.loads(choice["message"]["content"]))


BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("structured_outputs", {"structured_outputs": {"regex": "(a"}}),
    ("structured_outputs", {"structured_outputs": {"regex": r"(a)\1"}}),
    ("structured_outputs", {"structured_outputs": {"grammar": "start: nowhere"}}),
    ("structured_outputs", {"structured_outputs": {"json": "{"}}),
    ("structured_outputs", {"structured_outputs": {"json": {"type": "objekt"}}}),
    ("structured_outputs", {"structured_outputs": {"json": {"$ref": "https://example.org/schema"}}}),
    ("structured_outputs", {"structured_outputs": {"json": {"$ref": "#/nowhere"}}}),
    ("structured_outputs", {"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 4}}}),
    ("structured_outputs", {"structured_outputs": {"json": {"enum": []}}}),
    ("structured_outputs", {"structured_outputs": {}}),
    ("structured_outputs", {"structured_outputs": {"regex": "a", "choice": ["a"]}}),
    ("guided_regex", {"guided_regex": "(a"}),
    ("guided_grammar", {"guided_grammar": "start: nowhere"}),
    ("guided_json", {"guided_json": {"type": "objekt"}}),
    (
        "response_format",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("param", "body"), BROKEN, ids=[json.dumps(body)[:60] for _, body in BROKEN])
def test_what_is_no_form_is_refused_for_that_request_alone(server: Server, param: str, body: dict[str, Any]) -> None:
    response = server.chat(**body, max_tokens=5)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert server.chat(max_tokens=1).status_code == 200


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


HOSTILE: dict[str, dict[str, Any]] = {
    "nested": {"json": _nested(200)},
    "wide": {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20000)}}},
    "exponential": {"regex": "(" * 12 + "a{0,60}" + "){0,60}" * 12},
    "alternatives": {"regex": "(a|b|ab)*" * 200 + "c"},
    "grammar": {"grammar": 'start: a\na: a a | "x" | "x" a | a "x"'},
    "long-choice": {"choice": [f"{i:04}" * 50 for i in range(2000)]},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_forms_stall_nobody(server: Server, kind: str) -> None:
    response = server.chat(structured_outputs=HOSTILE[kind], max_tokens=8, timeout=10)
    assert response.status_code in (200, 400), response.text
    assert response.elapsed.total_seconds() < 10
    start = server.chat(max_tokens=1)
    assert start.status_code == 200
    assert start.elapsed.total_seconds() < 2
