"""Is a structure one that can be enforced? Answered in the front, before a request is queued."""

import functools

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured.errors import refusal
from lightvllm.structured.grammar import LIMITS, to_grammar

MAX_WHITESPACE_CHARACTERS = 100


def check_structured_outputs(params: StructuredOutputsParams) -> None:
    """Compile a structure, for bytes in place of tokens, and throw the result away.

    Takes milliseconds, and at worst some tenths of a second, most of it without Python's lock; may run in any thread.

    Raises:
        ParameterError: of the parameter `structured_outputs`; the message begins with the field and says what is wrong:
            a malformed schema, regular expression or grammar, a keyword that cannot be enforced, one that nothing
            fits, or one that takes too much to follow.
    """
    if params.whitespace_pattern is not None:
        _check_whitespace(params.whitespace_pattern)
    matcher = LLMatcher(_byte_tokenizer(), to_grammar(params), log_level=0, limits=LIMITS)
    matcher.compute_bitmask()  # some find only now that there is nothing to choose, or too much
    if matcher.is_error():
        raise refusal(f"{params.kind}: {_reason(matcher)}")


def _check_whitespace(pattern: str) -> None:
    if not 0 < len(pattern) <= MAX_WHITESPACE_CHARACTERS:
        raise refusal(f"whitespace_pattern must have 1 to {MAX_WHITESPACE_CHARACTERS} characters, not {len(pattern)}")
    if "\n" in pattern or "/" in pattern:
        raise refusal(f"whitespace_pattern {pattern!r} may have no slash, and no line break but as \\n")
    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_regex(pattern), log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise refusal(f"whitespace_pattern {pattern!r}: {_reason(matcher)}")
    # What matches the pattern and is not white space must not exist.
    other = f"start: OTHER\nOTHER: /{pattern}/ & ~/[ \\t\\n\\r]*/\n"
    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_lark(other), log_level=0, limits=LIMITS)
    is_possible = any(matcher.compute_bitmask())
    if is_possible and not matcher.is_error():
        raise refusal(f"whitespace_pattern {pattern!r} matches more than JSON's white space: space, \\t, \\n, \\r")


def _reason(matcher: LLMatcher) -> str:
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    if lines[0].startswith("NoExtension"):
        return "nothing fits it"
    if lines[0].startswith("oneOf "):
        return (
            "oneOf can only be enforced where its options plainly exclude each other, by their types or by the const "
            "of a required property; anyOf may do"
        )
    if lines[0].startswith("regex parse error"):
        lines[0] = "a pattern cannot be read:"
    details = [line for line in lines[1:] if line.startswith("error: ")]  # of a regular expression, behind a drawing
    return " ".join([lines[0], *details])[:300]


class _Bytes:
    """A tokenizer of which each token is a byte, as llguidance wants to see it."""

    eos_token_id = 256
    bos_token_id = None
    tokens = [*(bytes([byte]) for byte in range(256)), b"<end>"]  # noqa: RUF012
    special_token_ids = [256]  # noqa: RUF012

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()))
