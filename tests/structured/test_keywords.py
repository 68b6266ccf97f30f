"""Each keyword of JSON schema is enforced to the letter, as the jsonschema library reads it, or refused by its name."""

import json
import random
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured import check_structured_outputs
from tests.structured.walks import accepts, texts

NULL, INTEGER, STRING = {"type": "null"}, {"type": "integer"}, {"type": "string"}


def obj(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


def arr(**keywords: Any) -> dict[str, Any]:
    return {"type": "array", **keywords}


AB = obj(properties={"a": INTEGER, "b": NULL}, required=["a"], additionalProperties=False)
LIST = obj(properties={"v": INTEGER, "next": {"anyOf": [{"$ref": "#/$defs/list"}, NULL]}}, required=["v", "next"])

ENFORCED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "type null": NULL,
    "type boolean": {"type": "boolean"},
    "type several": {"type": ["integer", "null"]},
    "enum": {"enum": [1, "a", None, True, {"x": [1, 2]}, 1.5, []]},
    "enum type": {"enum": [1, "a", 2.0, 1.5], "type": "integer"},
    "enum minimum": {"enum": [1, 5, 9], "minimum": 4},
    "enum pattern": {"enum": ["a", "b", "ab"], "pattern": "b"},
    "enum maxLength": {"enum": ["a", "abc"], "maxLength": 2},
    "enum required": {"enum": [{"a": 1}, {"b": 1}], "required": ["b"]},
    "enum minProperties": {"enum": [{"a": 1}, {}], "minProperties": 1},
    "const": {"const": {"a": [1, {"b": None}], "c": 1.25, "ä\n": 'é"\\/😀'}},
    "minimum maximum": {"type": "integer", "minimum": -17, "maximum": 123},
    "minimum maximum of numbers": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "exclusive": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6},
    "exclusive of numbers": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "minimum closer than exclusiveMinimum": {"type": "number", "minimum": 5, "exclusiveMinimum": 3, "maximum": 6},
    "multipleOf": {"type": "integer", "multipleOf": 7},
    "multipleOf a fraction": {"type": "number", "multipleOf": 0.25, "minimum": 1, "maximum": 3},
    "length": {"type": "string", "minLength": 3, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[a-c]x|[0-9]$", "maxLength": 6},
    "items": arr(items={"type": "boolean"}, minItems=2, maxItems=3),
    "prefixItems": arr(prefixItems=[INTEGER, NULL], items=False),
    "prefixItems open": arr(prefixItems=[INTEGER, NULL], minItems=1, maxItems=4),
    "uniqueItems false": arr(items=INTEGER, uniqueItems=False),
    "properties": AB,
    "properties open": obj(properties={"a": INTEGER, 'q"\n': NULL, "\x01": NULL}),
    "additionalProperties": obj(properties={"a": INTEGER}, additionalProperties={"type": "boolean"}),
    "required unnamed": obj(required=["z"], additionalProperties={"type": "boolean"}),
    "patternProperties": obj(patternProperties={"^a": INTEGER}, additionalProperties=NULL),
    "patternProperties properties": obj(
        properties={"ab": {"type": "number"}}, patternProperties={"^a": {"minimum": 3}}
    ),
    "minProperties": obj(minProperties=1),
    "minProperties required": obj(required=["a"], minProperties=2),
    "maxProperties": obj(maxProperties=2, additionalProperties=NULL),
    "without type": {"properties": {"a": INTEGER}, "minimum": 3, "maxLength": 2, "items": NULL},
    "anyOf": {"anyOf": [INTEGER, AB]},
    "anyOf beside": {"type": "integer", "minimum": 4, "anyOf": [{"maximum": 6}, {"multipleOf": 5}]},
    "oneOf by type": {"oneOf": [INTEGER, STRING]},
    "oneOf by const": {
        "oneOf": [
            obj(properties={"k": {"const": "x"}, "v": INTEGER}, required=["k"]),
            obj(properties={"k": {"const": "y"}}, required=["k"]),
        ]
    },
    "allOf numbers": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "number", "maximum": 7}]},
    "allOf objects": {"allOf": [obj(properties={"a": INTEGER}), obj(properties={"b": NULL}, required=["b"])]},
    "allOf closed": {"allOf": [AB, obj(properties={"b": {}}, additionalProperties={"type": "number", "maximum": 5})]},
    "allOf strings": {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$", "maxLength": 5}]},
    "allOf arrays": {"allOf": [arr(prefixItems=[INTEGER]), arr(items={"type": "number", "maximum": 4}, maxItems=3)]},
    "$ref": {"$defs": {"a": INTEGER}, "$ref": "#/$defs/a", "minimum": 3},
    "$ref definitions": {"definitions": {"a/b~ c": INTEGER}, "$ref": "#/definitions/a~1b~0%20c"},
    "$ref properties": obj(properties={"a": INTEGER, "b": {"$ref": "#/properties/a"}}, additionalProperties=False),
    "$ref of itself": {"$defs": {"list": LIST}, "$ref": "#/$defs/list"},
    "$ref root": obj(properties={"c": arr(items={"$ref": "#"})}, additionalProperties=False),
    "annotations": {
        **{"$schema": "http://json-schema.org/draft-07/schema#", "$id": "http://x/y", "$comment": "", "x-y": 1},
        **{"title": "t", "description": 3, "default": 1, "examples": [], "deprecated": True, "readOnly": True},
        **{"contentMediaType": "x", "contentEncoding": "base64", "type": "integer"},
    },
    **{
        f"format {name}": {"type": "string", "format": name}
        for name in ("date", "ipv4", "ipv6", "uuid", "email", "date-time", "time", "duration", "hostname", "uri")
    },
    "format pattern": {"type": "string", "format": "date", "pattern": "^2.*7$"},
}


@pytest.mark.parametrize("name", ENFORCED)
def test_what_ends_fits_the_schema(name: str) -> None:
    schema = ENFORCED[name]
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    found = texts(40, json=schema)
    assert len(found) > (0 if "email" in name else 10)
    for text in found:
        validator.validate(json.loads(text))
        assert re.sub(r'"(\\.|[^"\\])*"', "", text).split() in ([], [re.sub(r'"(\\.|[^"\\])*"', "", text)]), text


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("'not'", {"type": "integer", "not": {"const": 3}}),
    ("'not' at #/properties/a~1b", obj(properties={"a/b": {"not": {}}})),
    ("'not' at #", {"enum": [1, 2], "not": {"const": 1}}),
    ("oneOf", {"oneOf": [INTEGER, {"type": "number"}]}),
    ("oneOf", {"oneOf": [{"const": "a"}, {"const": "a"}]}),
    ("oneOf", {"enum": [1, 2, "a"], "oneOf": [STRING, {"minimum": 2}]}),
    ("oneOf", {"oneOf": [{}, STRING]}),
    ("'if'", {"if": {"minimum": 5}, "then": {"multipleOf": 2}, "else": {"multipleOf": 3}}),
    ("'then'", {"then": {}}),
    ("'dependentRequired'", obj(dependentRequired={"a": ["b"]})),
    ("'dependentSchemas'", obj(dependentSchemas={"a": {"required": ["b"]}})),
    ("'dependencies'", obj(dependencies={"a": ["b"]})),
    ("'propertyNames'", obj(propertyNames={"pattern": "^a"})),
    ("'unevaluatedProperties'", obj(unevaluatedProperties=False)),
    ("'unevaluatedItems'", arr(unevaluatedItems=False)),
    ("'uniqueItems'", arr(uniqueItems=True)),
    ("'contains'", arr(contains=INTEGER)),
    ("'minContains'", arr(minContains=1)),
    ("'additionalItems'", arr(prefixItems=[INTEGER], additionalItems=False)),
    ("prefixItems", arr(items=[INTEGER])),
    ("'$dynamicRef'", {"$dynamicRef": "#a"}),
    ("'$anchor'", {"$defs": {"a": {"$anchor": "x"}}}),
    ("'$id'", {"$defs": {"a": {"$id": "x"}}}),
    ("'x-guidance'", {"x-guidance": {"lenient": True}}),
    ("'nullable'", {"type": "integer", "nullable": True}),
    ("did you mean 'minimum'", {"minimun": 3}),
    ("$ref", {"$ref": "https://json-schema.org/draft/2020-12/schema"}),
    ("$ref", {"$ref": "file:///etc/passwd"}),
    ("no schema", {"$ref": "#/$defs/zz"}),
    ("no schema", {"examples": [{"not": {}}], "$ref": "#/examples/0"}),
    ("finite", {"$ref": "#"}),
    ("finite", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    ("finite", {"$defs": {"n": obj(properties={"n": {"$ref": "#/$defs/n"}}, required=["n"])}, "$ref": "#/$defs/n"}),
    ("finite", arr(items={"$ref": "#"}, minItems=1)),
    ("format", {"type": "string", "format": "banana"}),
    ("format", {"type": "string", "format": "iri"}),
    ("pattern", {"type": "string", "pattern": "("}),
    ("look-around", {"type": "string", "pattern": "^(?=a)a"}),
    ("pattern", {"type": "string", "pattern": "[a-z&&b]"}),
    ("pattern", {"type": "string", "pattern": "a\x7f"}),
    ("regexes", obj(patternProperties={"^a": INTEGER, "b$": STRING})),
    ("minProperties", obj(minProperties=2)),
    ("min/maxProperties", obj(properties={"a": NULL, "b": NULL}, maxProperties=1)),
    ("exclusiveMinimum 0", {"enum": [0, 1], "exclusiveMinimum": 0}),
    ("exclusiveMinimum 0", {"type": "number", "minimum": 0, "exclusiveMinimum": 0}),
    ("exclusiveMaximum 1", {"allOf": [{"type": "number", "maximum": 1}, {"exclusiveMaximum": 1}]}),
    ("exclusiveMinimum 1", {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}),
    ("exclusiveMaximum -1", {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}),
    ("minimum", {"type": "integer", "minimum": 10**25}),
    ("maximum", {"type": "integer", "maximum": 2**63}),
    ("const", {"const": 12345678901234567890123}),
    ("const", {"const": {"a": [1e300]}}),
    ("enum", {"enum": ["a\x00b"]}),
    ("multipleOf", {"type": "integer", "multipleOf": 1234567}),
    ("multipleOf", {"type": "integer", "multipleOf": 0}),
    ("multipleOf", {"type": "integer", "multipleOf": -2}),
    ("multipleOf", {"type": "integer", "allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}),
]
NONSENSE: list[tuple[str, dict[str, Any]]] = [
    ("'banana'", {"type": "banana"}),
    ("type", {"type": []}),
    ("type", {"type": 3}),
    ("type", {"type": [["integer"]]}),
    ("properties", obj(properties=[1])),
    ("properties/a", obj(properties={"a": 1})),
    ("required", obj(required="a")),
    ("required", obj(required=[1])),
    ("enum", {"enum": {}}),
    ("enum", {"enum": []}),
    ("anyOf", {"anyOf": []}),
    ("anyOf", {"anyOf": {}}),
    ("items", arr(items=3)),
    ("minLength", {"type": "string", "minLength": -1}),
    ("minLength", {"type": "string", "minLength": 1.5}),
    ("minItems", arr(minItems=True)),
    ("minimum", {"type": "integer", "minimum": "1"}),
    ("exclusiveMinimum", {"type": "integer", "minimum": 3, "exclusiveMinimum": True}),
    ("minimum (3) is greater than maximum (2)", {"type": "integer", "minimum": 3, "maximum": 2}),
    ("Unsatisfiable", {"type": "integer", "minimum": 3.2, "maximum": 3.8}),
    ("minLength (3) is greater than maxLength (2)", {"type": "string", "minLength": 3, "maxLength": 2}),
    ("minItems", arr(minItems=3, maxItems=2)),
    ("Unsatisfiable", {"const": 3, "minimum": 4}),
    ("Unsatisfiable", {"allOf": [INTEGER, STRING]}),
    ("'z' is unsatisfiable", obj(required=["z"], additionalProperties=False)),
    ("Unsatisfiable", obj(properties={"a": False}, required=["a"])),
    ("$ref", {"$ref": 3}),
    ("$defs", {"$defs": []}),
]


@pytest.mark.parametrize(("words", "schema"), REFUSED + NONSENSE, ids=lambda value: str(value)[:60])
def test_what_cannot_be_enforced_is_refused_by_name(words: str, schema: dict[str, Any]) -> None:
    with pytest.raises(ParameterError) as caught:
        check_structured_outputs(StructuredOutputsParams(json=schema))
    assert caught.value.parameter == "structured_outputs"
    assert str(caught.value).startswith("structured_outputs: json: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "true", "3", "null", "{", "", "NaN", '{"enum": ["\\ud800"]}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="structured_outputs: json"):
        check_structured_outputs(StructuredOutputsParams(json=text))


def test_a_key_has_one_spelling() -> None:
    """Or a reader would take the second of two spellings, which nothing checked, for the property."""
    params = StructuredOutputsParams(json=obj(properties={"a": INTEGER, "b\n": INTEGER}))
    assert accepts(params, '{"a":1,"b\\n":2,"c":"x"}')
    for text in ('{"\\u0061":"x"}', '{"a":1,"\\u0061":"x"}', '{"b\\u000a":"x"}', '{"b\\n":"x"}', '{"a":1,"a":"x"}'):
        assert not accepts(params, text)


def test_dates_exist() -> None:
    date, moment = ({"type": "string", "format": name} for name in ("date", "date-time"))
    for text, exists in {"2020-02-29": 1, "2021-02-29": 0, "1900-02-29": 0, "2000-02-29": 1, "2021-04-31": 0}.items():
        assert accepts(StructuredOutputsParams(json=date), f'"{text}"') == exists
        assert accepts(StructuredOutputsParams(json=moment), f'"{text}T23:59:59.5+01:00"') == exists
    assert not accepts(StructuredOutputsParams(json=date), '"0000-01-01"')
    assert not accepts(StructuredOutputsParams(json=moment), '"2020-01-01T24:00:00Z"')


def test_closed_on_request() -> None:
    inner = obj(properties={"b": NULL})
    schema = obj(properties={"a": inner, "c": obj(), "d": obj(properties={}, additionalProperties=True)})
    is_open, closed = (StructuredOutputsParams(json=schema, disable_additional_properties=c) for c in (False, True))
    for text, fits_closed in {'{"a":{"b":null}}': 1, '{"z":1}': 0, '{"a":{"z":1}}': 0, '{"c":{"z":1}}': 1}.items():
        assert accepts(is_open, text)
        assert accepts(closed, text) == fits_closed
    assert accepts(closed, '{"d":{"z":1}}')


class _Schemas:
    """Random schemas of everything that can be enforced, in each other."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def schema(self, depth: int) -> Any:
        rng = self.rng
        if rng.random() < 0.05:
            return rng.random() < 0.8
        kinds = ["null", "boolean", "integer", "number", "string", "array", "object"]
        result: dict[str, Any] = {"type": rng.choice([*kinds, ["string", "integer"], ["object", "null"]])}
        numbers = [-3, -0.25, 0, 0.5, 1, 2, 7.125, 10, 100]
        choices: dict[str, Any] = {
            "minimum": lambda: rng.choice(numbers),
            "exclusiveMaximum": lambda: rng.choice(numbers),
            "multipleOf": lambda: rng.choice([1, 3, 0.5]),
            "minLength": lambda: rng.randrange(3),
            "maxLength": lambda: rng.randrange(2, 6),
            "pattern": lambda: rng.choice(["^a", "b$", "^[a-c]*$", "[0-9]"]),
            "enum": lambda: rng.sample([0, 1, 2.5, "a", "ab", None, [1], {"a": 1}, {"b": "a"}], 3),
            "required": lambda: rng.sample(["a", "b", "c"], rng.randrange(3)),
            "minItems": lambda: rng.randrange(3),
        }
        if depth:
            several = lambda: [self.schema(depth - 1) for _ in range(rng.randrange(1, 4))]  # noqa: E731
            choices |= {
                "properties": lambda: {name: self.schema(depth - 1) for name in rng.sample(["a", "b", "é", "q\n"], 2)},
                "additionalProperties": lambda: rng.choice([False, self.schema(depth - 1)]),
                "items": lambda: self.schema(depth - 1),
                **dict.fromkeys(("prefixItems", "anyOf", "allOf", "oneOf"), several),
            }
        for keyword, make in choices.items():
            if rng.random() < 0.2:
                result[keyword] = make()
        return result


@pytest.mark.parametrize("seed", range(4))
def test_keywords_together(seed: int) -> None:
    schemas, checked = _Schemas(seed), 0
    while checked < 40:
        schema = schemas.schema(3)
        try:
            found = texts(5, json=schema if isinstance(schema, dict) else {"anyOf": [schema]})
        except ParameterError:
            continue
        checked += len(found) > 0
        validator = Draft202012Validator(schema)
        for text in found:
            value = json.loads(text, parse_float=lambda digits: min(float(digits), 1e300))  # the library overflows
            assert validator.is_valid(value), (schema, text)
