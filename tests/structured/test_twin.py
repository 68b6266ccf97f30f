"""A matcher made of another one's compiled grammar is as one that was compiled itself."""

from collections.abc import Iterator

import numpy as np
import pytest
from llguidance import LLTokenizer

from lightvllm.config import DEFAULT_MODEL
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured.matcher import MaskFiller, Matcher, load_tokenizer

VOCAB_SIZE, END = 4096, 1
FORMS = {
    "json": StructuredOutputsParams(json={"type": "object", "properties": {"a": {"enum": ["x", "yy", "yz"]}}}),
    "regex": StructuredOutputsParams(regex="([a-z]{1,9}[0-9]{1,9}){1,9}"),
    "choice": StructuredOutputsParams(choice=["one", "once", "two"]),
}


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return load_tokenizer(DEFAULT_MODEL, VOCAB_SIZE)


def mask(matcher: Matcher) -> list[int]:
    """Tokens that may come next."""
    [words] = MaskFiller(VOCAB_SIZE).masks([matcher])
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_a_twin_begins_at_the_start_and_goes_its_own_way(tokenizer: LLTokenizer, form: str) -> None:
    first = Matcher(lambda: tokenizer, FORMS[form], [END])
    start = mask(first)
    written = []
    for _ in range(2):
        written.append(mask(first)[-1])
        first.consume(written[-1:])
    follows = mask(first)

    compiled: Iterator[LLTokenizer] = iter([])  # a twin compiles nothing: it asks for no tokenizer
    twin = Matcher(lambda: next(compiled), FORMS[form], [END], twin=first)
    assert mask(twin) == start
    twin.consume(written)
    assert mask(twin) == follows == mask(Matcher(lambda: next(compiled), FORMS[form], [END], written, first))
    first.consume(follows[:1])
    assert mask(twin) == follows


def test_a_matcher_that_failed_is_no_twin(tokenizer: LLTokenizer) -> None:
    failed = Matcher(lambda: tokenizer, FORMS["choice"], [END])
    failed.consume([VOCAB_SIZE - 1])
    assert failed.error is not None
    assert mask(Matcher(lambda: tokenizer, FORMS["choice"], [END], twin=failed)) == mask(
        Matcher(lambda: tokenizer, FORMS["choice"], [END])
    )
