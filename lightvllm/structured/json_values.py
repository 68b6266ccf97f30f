"""What the values of JSON-schema keywords may be, and the patterns of the formats that llguidance has not exactly."""

import math
import re
from typing import Any

from lightvllm.structured.errors import refusal, unenforceable

# From here on a float64, as which llguidance and most JSON readers hold a number, no longer tells integers apart.
LARGEST_NUMBER = 2**53
MAX_MULTIPLE_OF = 10_000  # the matcher keeps one state for each remainder
MAX_PATTERN_CHARACTERS = 1_000
MAX_REPETITIONS = 10_000
MAX_LITERAL_CHARACTERS = 10_000
_MAX_COUNT = 2**31 - 1

_DATE = (
    r"(?:(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# RFC 3339, with leap days in leap years only and without leap seconds: every reader takes these.
FORMAT_PATTERNS = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
FORMATS = (*FORMAT_PATTERNS, "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Control characters without a short escape in JSON: the long ones would give a key a second spelling.
_UNSPELLABLE = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_REPETITION = re.compile(r"\{\s*([0-9]+)\s*(?:,\s*([0-9]*))?\s*\}")
# Inside of brackets these are operators in Rust's syntax and characters elsewhere.
_CLASS = re.compile(r"\\.|\[\^?\]?((?:\\.|[^\]\\])*)\]", re.DOTALL)
_CLASS_OPERATOR = re.compile(r"(?<!\\)\[|&&|--|~~")


def check_type(value: Any, place: str) -> None:
    """A type's name, or a list of different ones."""
    names = value if isinstance(value, list) and value else [value]
    for name in names:
        if name not in TYPES or not isinstance(name, str):
            raise refusal(f"json: type at {place} is {name!r}, but must be one of {', '.join(TYPES)}")


def check_count(keyword: str, value: Any, place: str) -> None:
    """A number of characters, items or properties."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_COUNT:
        raise refusal(f"json: {keyword} at {place} is {_shown(value)}, but must be an integer in [0, {_MAX_COUNT}]")


def check_number(keyword: str, value: Any, place: str) -> None:
    """A number that is exact as a float64."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise refusal(f"json: {keyword} at {place} is {_shown(value)}, but must be a number in [-2**53, 2**53]")


def coefficient(value: float) -> int:
    """The digits of a number as an integer: 12 of 12, of 1.2 and of 0.0012."""
    mantissa = repr(abs(value)).partition("e")[0]
    return int(mantissa.replace(".", "").strip("0") or "0") if "." in mantissa else int(mantissa)


def check_multiple_of(value: Any, place: str) -> None:
    """A positive number of few digits."""
    check_number("multipleOf", value, place)
    if not (value >= 1e-6 and coefficient(value) <= MAX_MULTIPLE_OF):
        raise unenforceable(
            f"json: multipleOf at {place} is {value}, but can only be enforced from 1e-06 on, and where its digits "
            f"make a number of at most {MAX_MULTIPLE_OF}"
        )


def check_repetitions(field: str, regex: str) -> None:
    """Counts in braces that are small enough to be laid out."""
    for found in _REPETITION.finditer(regex):
        if any(int(count) > MAX_REPETITIONS for count in found.groups("") if count):
            raise unenforceable(f"{field}: {found[0][:60]} repeats more than {MAX_REPETITIONS} times")


def check_pattern(keyword: str, value: Any, place: str) -> None:
    """A regular expression that means the same to Rust and to JSON schema."""
    if not isinstance(value, str):
        raise refusal(f"json: {keyword} at {place} is {_shown(value)}, but must be a string")
    if len(value) > MAX_PATTERN_CHARACTERS:
        raise unenforceable(
            f"json: {keyword} at {place} has {len(value)} of at most {MAX_PATTERN_CHARACTERS} characters"
        )
    if _UNSPELLABLE.search(value):
        raise unenforceable(f"json: {keyword} at {place} has a control character")
    check_repetitions(f"json: {keyword} at {place}", value)
    if any(_CLASS_OPERATOR.search(found[1] or "") for found in _CLASS.finditer(value)):
        raise unenforceable(f"json: {keyword} at {place}: in brackets, '[', '&&', '--' and '~~' must be escaped")


def check_format(value: Any, place: str) -> None:
    """A format that can be enforced."""
    if not isinstance(value, str) or value not in FORMATS:
        raise unenforceable(
            f"json: format at {place} is {_shown(value)}, which cannot be enforced: {', '.join(FORMATS)} can"
        )


def check_literal(keyword: str, value: Any, place: str) -> tuple[set[float], int]:
    """A value of const or enum, of which the text is known exactly; returns the numbers in it, and how many lists and
    objects it is made of."""
    numbers: set[float] = set()
    num_containers = 0
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, list | dict):
            num_containers += 1
            left += [*part, *part.values()] if isinstance(part, dict) else part
        elif isinstance(part, str):
            _check_literal_string(keyword, part, place)
        elif isinstance(part, int | float) and not isinstance(part, bool):
            check_number(keyword, part, place)
            numbers.add(float(part))
    return numbers, num_containers


def _check_literal_string(keyword: str, value: str, place: str) -> None:
    if len(value) > MAX_LITERAL_CHARACTERS:
        raise unenforceable(f"json: {keyword} at {place} has a string of more than {MAX_LITERAL_CHARACTERS} characters")
    if _UNSPELLABLE.search(value):
        raise unenforceable(
            f"json: {keyword} at {place}: {_shown(value)} has a control character, which cannot be enforced"
        )


def check_names(keyword: str, value: Any, place: str) -> None:
    """A list of different strings."""
    is_list = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not is_list or len(set(value)) < len(value):
        raise refusal(f"json: {keyword} at {place} is {_shown(value)}, but must be a list of different strings")


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
