"""JSON schemas as they can be enforced: each keyword is enforced to the letter, or the schema is refused by its name.

llguidance enforces most of JSON schema's draft 2020-12, refuses some of it, and ignores what it does not know. What is
refused here is what it ignores, what it gets wrong in corners (tests/structured/test_keywords.py asks the jsonschema
library), and what would take it too long.
"""

import difflib
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from lightvllm.structured.errors import refusal, unenforceable
from lightvllm.structured.json_values import (
    FORMAT_PATTERNS,
    MAX_MULTIPLE_OF,
    TYPES,
    check_count,
    check_format,
    check_literal,
    check_multiple_of,
    check_names,
    check_number,
    check_pattern,
    check_type,
    coefficient,
)

# Each keeps the time to compile a schema, and the stack that it takes, far from what hurts.
MAX_CHARACTERS = 128 * 1024
MAX_DEPTH = 50
MAX_PROPERTIES = 400  # of one object
MAX_PATTERN_PROPERTIES = 20  # of one object
MAX_REFERENCED = 100

# These say nothing of what is valid.
_ANNOTATIONS = frozenset(["title", "description", "default", "example", "examples", "deprecated", "$comment"])
_ANNOTATIONS |= {"readOnly", "writeOnly", "contentMediaType", "contentEncoding", "contentSchema"}
_ANNOTATIONS |= {"discriminator", "externalDocs", "xml", "markdownDescription"}  # of OpenAPI and of editors
_AT_ROOT = frozenset(["$schema", "$id", "id"])
_ONE = ("items", "additionalProperties")
_LISTS = ("prefixItems", "anyOf", "allOf", "oneOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OTHER = ("type", "enum", "const", "multipleOf", "pattern", "format", "required", "$ref", "uniqueItems")
_COMBINING = frozenset(["anyOf", "oneOf", "$ref", "enum", "const"])
KEYWORDS = frozenset([*_ONE, *_LISTS, *_MAPS, *_COUNTS, *_BOUNDS, *_OTHER])
_HINTS = {
    "nullable": 'write "type": [..., "null"]',
    "additionalItems": 'write "prefixItems" and "items"',
    "dependencies": "",
    "x-guidance": "",
}


def parse_schema(text: str) -> Any:
    """The JSON value of a schema's text.

    Raises:
        ParameterError: it is no JSON, or too long or too deep to look at.
    """
    if len(text) > MAX_CHARACTERS:
        raise unenforceable(f"json: the schema has {len(text)} of at most {MAX_CHARACTERS} characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise unenforceable("json: the schema is nested too deep") from None
    except ValueError as error:
        raise refusal(f"json is not JSON: {error}") from None


@dataclass
class Budget:
    """How much the schemas of one request may have, together.

    Attributes:
        schemas: one in another or side by side, and the lists and objects in const and enum.
        pattern_characters: of all regular expressions.
        remainders: the sum of what multipleOf asks for.
    """

    schemas: int = 2_000
    pattern_characters: int = 20_000
    remainders: int = MAX_MULTIPLE_OF

    def take(self, name: str, amount: int = 1) -> None:
        """Use some of it up, or refuse."""
        left = getattr(self, name) - amount
        if left < 0:
            most = getattr(Budget, name)
            raise unenforceable(f"json: too much to enforce in good time: more than {most} {name.replace('_', ' ')}")
        setattr(self, name, left)


def enforceable(schema: Any, is_closed: bool = False, budget: Budget | None = None) -> dict[str, Any]:
    """The schema without its annotations, and with patterns in place of some formats.

    Args:
        budget: is used up; a request's schemas share one.
        is_closed: schemas with "properties" and without a word about others allow none.

    Raises:
        ParameterError: it makes no sense, or cannot be enforced; the message names the keyword.
    """
    if not isinstance(schema, dict):
        raise refusal(f"json must be a JSON schema, an object, but is {type(schema).__name__}")
    walk = _Walk(is_closed, budget or Budget())
    try:
        cleaned = walk.clean(schema, "#", 0)
        walk.finish()
        json.dumps(cleaned, ensure_ascii=False).encode()
    except RecursionError:
        raise unenforceable("json: the schema is nested too deep") from None
    except UnicodeEncodeError:
        raise refusal("json: the schema has half of a surrogate pair, which is no character") from None
    assert isinstance(cleaned, dict)
    return cleaned


class _Walk:
    """One look at a schema and all those in it."""

    def __init__(self, is_closed: bool, budget: Budget) -> None:
        self.is_closed = is_closed
        self.budget = budget
        self.schemas: dict[str, Any] = {}  # place -> cleaned
        self.references: dict[str, str] = {}  # target -> a place that refers to it
        self.is_combined = False  # some value has to fit two schemas at once
        self.numbers: dict[str, set[float]] = {keyword: set() for keyword in _BOUNDS}
        self.multiples: set[int] = set()

    def clean(self, schema: Any, place: str, depth: int) -> Any:
        """Check the schema at a place (a JSON pointer) and all in it; returns what llguidance is to see of it."""
        if isinstance(schema, bool):
            self.schemas[place] = schema
            return schema
        if not isinstance(schema, dict):
            raise refusal(f"json: the schema at {place} must be an object or a boolean, not {type(schema).__name__}")
        self.budget.take("schemas")
        if depth > MAX_DEPTH:
            raise unenforceable(f"json: the schemas in each other are more than {MAX_DEPTH} deep")
        cleaned: dict[str, Any] = {}
        self.schemas[place] = cleaned
        for keyword, value in schema.items():
            if keyword in _ANNOTATIONS or (keyword in _AT_ROOT and depth == 0):
                continue
            if keyword.startswith("x-") and keyword not in _HINTS:
                continue
            if keyword not in KEYWORDS:
                raise _unknown(keyword, place)
            cleaned[keyword] = self._keyword(keyword, value, place, depth)
        self._together(cleaned, place)
        return cleaned

    def _keyword(self, keyword: str, value: Any, place: str, depth: int) -> Any:
        if keyword in _ONE:
            if isinstance(value, list):
                raise refusal(f'json: {keyword} at {place} is a list; write "prefixItems" and "items"')
            return self.clean(value, f"{place}/{keyword}", depth + 1)
        if keyword in _LISTS:
            if not isinstance(value, list) or not value:
                raise refusal(f"json: {keyword} at {place} must be a list of at least one schema")
            return [self.clean(part, f"{place}/{keyword}/{i}", depth + 1) for i, part in enumerate(value)]
        if keyword in _MAPS:
            if not isinstance(value, dict):
                raise refusal(f"json: {keyword} at {place} must be an object of schemas, not {type(value).__name__}")
            parts = {
                name: self.clean(part, f"{place}/{keyword}/{name.replace('~', '~0').replace('/', '~1')}", depth + 1)
                for name, part in value.items()
            }
            if keyword == "patternProperties":
                for pattern in value:
                    self._pattern(keyword, pattern, place)
            return parts
        self._scalar(keyword, value, place)
        return value

    def _scalar(self, keyword: str, value: Any, place: str) -> None:
        if keyword in _COUNTS:
            check_count(keyword, value, place)
        elif keyword in _BOUNDS:
            check_number(keyword, value, place)
            self.numbers[keyword].add(float(value))
        elif keyword == "multipleOf":
            check_multiple_of(value, place)
            if coefficient(value) not in self.multiples:
                self.multiples.add(coefficient(value))
                self.budget.take("remainders", coefficient(value))
        elif keyword == "type":
            check_type(value, place)
        elif keyword in ("enum", "const"):
            if keyword == "enum" and (not isinstance(value, list) or not value):
                raise refusal(f"json: enum at {place} must be a list of at least one value")
            numbers, num_containers = check_literal(keyword, value, place)
            self.budget.take("schemas", num_containers)
            self.numbers["minimum"] |= numbers
            self.numbers["maximum"] |= numbers
        elif keyword == "pattern":
            self._pattern(keyword, value, place)
        elif keyword == "format":
            check_format(value, place)
        elif keyword == "required":
            check_names(keyword, value, place)
        elif keyword == "$ref":
            if not isinstance(value, str) or not value.startswith("#"):
                raise refusal(f"json: $ref at {place} is {value!r}, but must point into the schema itself: '#/...'")
            self.references.setdefault(unquote(value), place)
        elif value is not False:
            raise unenforceable(f"json: the keyword {keyword!r} at {place} cannot be enforced")  # uniqueItems

    def _pattern(self, keyword: str, value: Any, place: str) -> None:
        check_pattern(keyword, value, place)
        self.budget.take("pattern_characters", len(value))

    def _together(self, schema: dict[str, Any], place: str) -> None:
        """What depends on several keywords of a schema; rewrites some."""
        schema.pop("uniqueItems", None)
        names = {*schema.get("properties", ()), *schema.get("required", ())}
        if len(names) > MAX_PROPERTIES:
            raise unenforceable(
                f"json: properties at {place}: {len(names)} are named, but at most {MAX_PROPERTIES} can be"
            )
        if len(schema.get("patternProperties", ())) > MAX_PATTERN_PROPERTIES:
            raise unenforceable(f"json: patternProperties at {place} has more than {MAX_PATTERN_PROPERTIES} patterns")
        if schema.get("minProperties", 0) > len(schema.get("required", ())) + 1:
            # Nothing keeps a key that is not in "properties" from coming twice, which counts once.
            raise unenforceable(
                f"json: minProperties at {place} cannot be enforced beyond the required properties and one more"
            )
        if self.is_closed and "properties" in schema and "patternProperties" not in schema:
            schema.setdefault("additionalProperties", False)
        pattern = FORMAT_PATTERNS.get(schema.get("format", ""))
        if pattern is not None:
            del schema["format"]
            if schema.setdefault("pattern", pattern) != pattern:
                schema["allOf"] = [*schema.get("allOf", ()), {"pattern": pattern}]
        has_own = not _COMBINING.union(["allOf", "$defs", "definitions", "type"]).issuperset(schema)
        self.is_combined |= has_own + len(schema.get("allOf", ())) + len(_COMBINING.intersection(schema)) > 1
        _check_bounds({keyword: {schema[keyword]} if keyword in schema else set() for keyword in _BOUNDS}, place)

    def finish(self) -> None:
        """What depends on the whole schema."""
        if len(self.references) > MAX_REFERENCED:
            raise unenforceable(f"json: $ref points to more than {MAX_REFERENCED} places")
        for target, place in self.references.items():
            if target not in self.schemas:
                raise refusal(f"json: $ref at {place} points to {target!r}, where there is no schema")
        if self.is_combined:
            self._check_combined()
        finite: set[str] = set()
        while found := {t for t in self.references if t not in finite and self._is_finite(self.schemas[t], finite)}:
            finite |= found
        if not self._is_finite(self.schemas["#"], finite):
            raise refusal("json: no finite value fits the schema: what it requires requires itself, by $ref")

    def _check_combined(self) -> None:
        _check_bounds(self.numbers, "#")
        product = 1
        for multiple in self.multiples:
            product *= multiple
        if product > MAX_MULTIPLE_OF:
            raise unenforceable(
                f"json: multipleOf: several that may come together, with a product above {MAX_MULTIPLE_OF}"
            )

    def _is_finite(self, schema: Any, finite: set[str]) -> bool:
        """Whether some finite value may fit, when the `$ref`s to `finite` have one: by what is required of it."""
        if isinstance(schema, bool):
            return True
        if "$ref" in schema and unquote(schema["$ref"]) not in finite:
            return False
        options = [schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in schema]
        if not all(any(self._is_finite(option, finite) for option in some) for some in options):
            return False
        if not all(self._is_finite(part, finite) for part in schema.get("allOf", ())):
            return False
        types = schema.get("type", TYPES)
        types = [types] if isinstance(types, str) else types
        if any(name not in ("object", "array") for name in types) or "enum" in schema or "const" in schema:
            return True
        properties, count = schema.get("properties", {}), schema.get("minItems", 0)
        named = [properties[name] for name in schema.get("required", ()) if name in properties]
        items = [*schema.get("prefixItems", ()), schema.get("items", True)][:count]
        return ("object" in types and all(self._is_finite(part, finite) for part in named)) or (
            "array" in types and all(self._is_finite(part, finite) for part in items)
        )


def _check_bounds(numbers: dict[str, set[float]], place: str) -> None:
    """Refuse what llguidance gets wrong of an exclusive bound: a value that is the bound itself.

    Of an exclusive and an equal inclusive one it takes the inclusive one; and where a whole number and a fraction less
    than one away are the bounds, it lets the whole number through.
    """
    for exclusive, inclusive, others, sign in (
        ("exclusiveMinimum", "minimum", ("maximum", "exclusiveMaximum"), 1),
        ("exclusiveMaximum", "maximum", ("minimum", "exclusiveMinimum"), -1),
    ):
        for bound in numbers[exclusive]:
            if bound in numbers[inclusive]:
                raise unenforceable(
                    f"json: {exclusive} {bound:g} at {place} cannot be enforced together with the same number in "
                    f"{inclusive}, enum or const"
                )
            opposite = numbers[others[0]] | numbers[others[1]]
            if bound % 1 == 0 and any(0 < sign * (other - bound) < 1 for other in opposite):
                raise unenforceable(
                    f"json: {exclusive} {bound:g} at {place} cannot be enforced with {others[0]} less than one away"
                )


def _unknown(keyword: str, place: str) -> Exception:
    hint = _HINTS.get(keyword, "")
    if keyword not in _HINTS and re.fullmatch(r"\w{3,}", keyword):
        nearest = difflib.get_close_matches(keyword, KEYWORDS, n=1, cutoff=0.85)
        hint = f"did you mean {nearest[0]!r}?" if nearest else ""
    return unenforceable(
        f"json: the keyword {keyword[:60]!r} at {place} cannot be enforced{'; ' if hint else ''}{hint}"
    )
