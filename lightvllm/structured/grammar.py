"""From what a request asks for to a grammar of llguidance (github.com/guidance-ai/llguidance)."""

import json
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured.errors import refusal
from lightvllm.structured.json_schema import enforceable, parse_schema
from lightvllm.structured.json_values import check_repetitions
from lightvllm.structured.lark import MAX_CHARACTERS as MAX_GRAMMAR_CHARACTERS
from lightvllm.structured.lark import prepared

MAX_REGEX_CHARACTERS = 4_000
MAX_CHOICES = 4_000
MAX_CHOICE_CHARACTERS = 4_000
MAX_ALL_CHOICES_CHARACTERS = 64 * 1024

# What compiling and each later step may cost: some tens of milliseconds, and of megabytes. Past them a matcher fails.
LIMITS = LLParserLimits(
    initial_lexer_fuel=100_000,
    step_lexer_fuel=100_000,
    step_max_items=10_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
# Do not work out at once all that must come: a short regular expression can force a megabyte.
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
# One spelling for each string, so that no key comes twice in two: quotes, and the controls that have a short escape.
_ESCAPES = 'nrbtf\\"'


def to_grammar(params: StructuredOutputsParams) -> str:
    """The grammar of the whole output.

    Raises:
        ParameterError: it is not well-formed, cannot be enforced, or is too large; the message says what. Passing does
            not mean that llguidance takes it (see `lightvllm.structured.check`).
    """
    options = json_options(params)
    if params.json is not None:
        assert isinstance(params.json, str)
        schema = enforceable(parse_schema(params.json), params.disable_additional_properties)
        try:
            return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
        except ValueError as error:
            raise refusal(f"json: {error}") from None
    if params.json_object:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=options)
    if params.regex is not None:
        (only,) = json.loads(LLMatcher.grammar_from_regex(_without_anchors(params.regex)))["grammars"]
        return str(only["lark_grammar"]) + _NO_FORCING
    if params.choice is not None:
        return _choice(params.choice) + _NO_FORCING
    assert params.grammar is not None
    if len(params.grammar) > MAX_GRAMMAR_CHARACTERS:
        raise refusal(f"grammar has {len(params.grammar)} of at most {MAX_GRAMMAR_CHARACTERS} characters")
    return prepared(params.grammar, options) + _NO_FORCING


def json_options(params: StructuredOutputsParams) -> Any:
    """How JSON is to be written, as llguidance's options."""
    return {
        "whitespace_flexible": not params.disable_any_whitespace,
        "whitespace_pattern": params.whitespace_pattern,
        "item_separator": ",",
        "key_separator": ":",
        "coerce_one_of": False,
        "lenient": False,
        "json_allowed_escapes": _ESCAPES,
        "json_allow_general_unicode_escapes": False,
    }


def _without_anchors(regex: str) -> str:
    """The whole output matches, so anchors at the two ends change nothing; llguidance knows none."""
    if len(regex) > MAX_REGEX_CHARACTERS:
        raise refusal(f"regex has {len(regex)} of at most {MAX_REGEX_CHARACTERS} characters")
    check_repetitions("regex", regex)
    regex = regex.removeprefix("^")
    body = regex.removesuffix("$")
    is_escaped = (len(body) - len(body.rstrip("\\"))) % 2 == 1
    return regex if is_escaped else body


def _choice(choice: list[str]) -> str:
    longest, total = max(map(len, choice), default=0), sum(map(len, choice))
    if not choice:
        raise refusal("choice is empty, but must have at least one string")
    if len(choice) > MAX_CHOICES or longest > MAX_CHOICE_CHARACTERS or total > MAX_ALL_CHOICES_CHARACTERS:
        raise refusal(
            f"choice has {len(choice)} strings, the longest of {longest} characters, all of {total}; at most "
            f"{MAX_CHOICES}, {MAX_CHOICE_CHARACTERS} and {MAX_ALL_CHOICES_CHARACTERS} can be"
        )
    # As one terminal they are one automaton; as rules, each would be followed on its own.
    return "start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, dict.fromkeys(choice)))
