"""Follows outputs through their grammars, token by token: which token may come next, which has come."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer
from llguidance.numpy import fill_next_token_bitmask_par

from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured.grammar import LIMITS, to_grammar


def load_tokenizer(folder: Path, vocab_size: int) -> LLTokenizer:
    """The tokens' texts, as llguidance needs them, from tokenizer.json. Takes 0.02 s for 4,096 tokens, 1 s for 150,000.

    Args:
        vocab_size: number of logits the model gives; those without a token are never allowed.

    Raises:
        ValueError: there is no tokenizer.json, or it has more tokens than the model has logits.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"structured output needs the checkpoint's tokenizer.json, which {folder} does not have")
    return LLTokenizer(file.read_text(encoding="utf-8"), n_vocab=vocab_size, eos_token=0)


class Matcher:
    """One output and its grammar. Whatever goes wrong is in `error`, and nothing is raised.

    Args:
        tokenizer: gives the one that all share; raises ValueError where there is none.
        params: checked by `lightvllm.structured.check_structured_outputs`.
        eos_token_ids: may come where the grammar is complete, and nothing else may follow them.
        output_token_ids: of this output, so far: it may come back from preemption or from a crash.
        twin: a matcher of equal `params`. Its compiled grammar is copied, which takes a hundredth of compiling it.

    Attributes:
        error: why this output cannot go on, None as long as it can.
    """

    def __init__(
        self,
        tokenizer: Callable[[], LLTokenizer],
        params: StructuredOutputsParams,
        eos_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
        twin: "Matcher | None" = None,
    ) -> None:
        self.params = params
        self.error: str | None = None
        self.eos_token_ids = list(eos_token_ids)
        self.matcher: LLMatcher | None = None
        if not self.eos_token_ids:
            self.error = "structured_outputs: the model has no end-of-sequence token to end the output with"
            return
        if twin is not None and twin.matcher is not None and twin.error is None:
            self.matcher = twin.matcher.deep_copy()
            self.matcher.reset()
        else:
            try:
                self.matcher = LLMatcher(tokenizer(), to_grammar(params), log_level=0, limits=LIMITS)
            except ValueError as error:
                self.error = str(error)
        self.consume(output_token_ids)

    def consume(self, token_ids: Sequence[int]) -> None:
        """Take the tokens that were chosen, in order."""
        if self.matcher is not None and not self._failed():
            self.matcher.consume_tokens([token_id for token_id in token_ids if token_id not in self.eos_token_ids])
            self._failed()

    def finish_mask(self, mask: np.ndarray) -> None:
        """Put the end-of-sequence tokens into a mask of this matcher's that llguidance has filled.

        Args:
            mask: # [num_words] int32, one bit a token; all zero when something is wrong.
        """
        if self._failed():
            mask[:] = 0
            return
        assert self.matcher is not None
        _clear(mask, [0])  # the token that `load_tokenizer` told llguidance ends everything
        _clear(mask, self.eos_token_ids)
        if self.matcher.is_accepting():
            _set(mask, self.eos_token_ids)

    def _failed(self) -> bool:
        if self.error is None and self.matcher is not None and self.matcher.is_error():
            first = self.matcher.get_error().partition("\n")[0].strip()
            self.error = f"structured_outputs: the output cannot be followed any further: {first[:300]}"
        return self.error is not None


class MaskFiller:
    """Computes the masks of many matchers at once, on several processors where there are some."""

    def __init__(self, vocab_size: int) -> None:
        self.num_words = -(-vocab_size // 32)
        self._executor: LLExecutor | None = None

    def masks(self, matchers: Sequence[Matcher]) -> np.ndarray:
        """Which tokens each output may go on with. # [num_matchers, num_words] int32; bit t % 32 of word t // 32"""
        masks = np.zeros((len(matchers), self.num_words), np.int32)
        if self._executor is None:
            self._executor = LLExecutor()
        usable = [(m.matcher, i) for i, m in enumerate(matchers) if m.error is None and m.matcher is not None]
        if usable:
            fill_next_token_bitmask_par(self._executor, usable, masks)
        for matcher, mask in zip(matchers, masks, strict=True):
            matcher.finish_mask(mask)
        return masks


def without_where_possible(mask: np.ndarray, token_ids: np.ndarray) -> None:
    """Forbid tokens, unless nothing else is left: a structured output must be able to go on, or to end.

    Args:
        mask: # [num_words] int32; changed in place.
        token_ids: # [num_tokens]
    """
    rest = mask.copy()
    _clear(rest, token_ids)
    if rest.any():
        mask[:] = rest


def _clear(mask: np.ndarray, token_ids: Sequence[int] | np.ndarray) -> None:
    ids = np.asarray(token_ids, np.int64)
    np.bitwise_and.at(mask.view(np.uint32), ids // 32, ~(np.uint32(1) << (ids % 32).astype(np.uint32)))


def _set(mask: np.ndarray, token_ids: Sequence[int]) -> None:
    ids = np.asarray(token_ids, np.int64)
    np.bitwise_or.at(mask.view(np.uint32), ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
