"""Grammars as users write them, in Lark's notation or GBNF: what may be in them, and the JSON schemas in them."""

import json
import re
from typing import Any

from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from lightvllm.structured.errors import refusal
from lightvllm.structured.json_schema import Budget, enforceable
from lightvllm.structured.json_values import check_repetitions

MAX_CHARACTERS = 64 * 1024
# llguidance follows the rules one in another on the stack, and takes the square of the number of symbols.
MAX_RULES = 500
MAX_SYMBOLS = 3_000

# What in a grammar is a text of its own. Anything else that has a quote or a slash is malformed.
_PIECE = re.compile(
    r'(?P<string>"(?:\\.|[^"\\\n])*"i?)|(?P<regex>/(?![/*])(?:\\.|[^/\\\n])+/[imslux]*)|(?P<comment>(?://|\#)[^\n]*)'
    r"|(?P<json>%json\b\s*)|(?P<special><[^\s<>]*>)|(?P<directive>%\w+)|(?P<bad>[\"/])"
)
_ATTRIBUTES = re.compile(r"^[ \t]*[?!]*\w+[ \t]*\[([^\]\n]*)\][ \t]*:", re.MULTILINE)
_DIRECTIVES = ("%ignore", "%import", "%llguidance")


def prepared(grammar: str, json_options: dict[str, Any]) -> str:
    """The grammar in Lark's notation, its JSON schemas as they can be enforced.

    Args:
        grammar: GBNF, unless a rule is called "start:".
        json_options: how JSON is to be written where a rule has `%json {schema}`.

    Raises:
        ParameterError: it is malformed, too large, or has what is not about text (special tokens, token budgets).
    """
    try:
        text = any_to_lark(grammar)
    except Exception as error:  # it raises bare ones
        problem = str(error)[:300] if type(error) in (Exception, GbnfToLarkError) else "it cannot be read"
        raise refusal(f"grammar has no rule 'start:' as Lark's have, and is no GBNF: {problem}") from None
    budget = Budget()
    pieces: list[str] = []  # of the grammar that llguidance gets
    outside: list[str] = []  # what is no text of its own
    position = 0
    while found := _PIECE.search(text, position):
        between = text[position : found.start()]
        position = found.end()
        piece = found[0]
        if found["json"]:
            schema, position = _schema(text, position)
            piece += json.dumps(enforceable(schema, budget=budget) | {"x-guidance": json_options})
        elif found["bad"]:
            raise refusal(f"grammar: {found[0]} at character {found.start()} begins nothing that ends in its line")
        elif found["regex"]:
            check_repetitions("grammar", piece)
        elif found["special"]:
            raise refusal(f"grammar: {found[0][:60]} is a token, but a grammar is of text")
        elif found["directive"] and found[0] not in _DIRECTIVES:
            raise refusal(f"grammar: {found[0][:60]} is not supported; {', '.join(_DIRECTIVES)} and %json are")
        if found["directive"] == "%llguidance":
            position, piece = _end_of_empty_options(text, position), ""
        pieces += [between, piece]
        outside += [between, "\n" if found["comment"] else " _ "]
    pieces.append(text[position:])
    _check_outside("".join([*outside, text[position:]]))
    return "".join(pieces)


def _schema(text: str, position: int) -> tuple[Any, int]:
    """The schema behind a `%json`, and where it ends."""
    try:
        schema, end = json.JSONDecoder().raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        raise refusal(f"grammar: what follows %json is no JSON, or too deep: {error}") from None
    if isinstance(schema, dict):
        schema.pop("x-guidance", None)  # how JSON is written is for the request to say, in one place
    return schema, end


def _end_of_empty_options(text: str, position: int) -> int:
    found = re.compile(r"\s*\{\s*\}").match(text, position)
    if found is None:
        raise refusal("grammar: %llguidance takes no options here, only {}")
    return found.end()


def _check_outside(text: str) -> None:
    """Bounds and attributes, of what is left of a grammar without its strings and regular expressions."""
    num_rules, num_symbols = text.count(":"), len(re.findall(r"\w+", text))
    if num_rules > MAX_RULES or num_symbols > MAX_SYMBOLS:
        raise refusal(
            f"grammar has {num_rules} rules and {num_symbols} symbols, but at most {MAX_RULES} and {MAX_SYMBOLS} can "
            "be compiled in good time"
        )
    for found in _ATTRIBUTES.finditer(text):
        if found[1].strip() != "lazy":
            raise refusal(f"grammar: the attribute [{found[1].strip()[:60]}] is not supported, only [lazy] is")
