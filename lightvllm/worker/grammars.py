"""The grammars of the running requests: only tokens that fit may be chosen, and the chosen ones are followed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from lightvllm.engine.step import NewRequest

if TYPE_CHECKING:  # most workers never need llguidance
    from llguidance import LLTokenizer

    from lightvllm.structured.matcher import MaskFiller, Matcher


class Grammars:
    """The matchers of requests with structured_outputs, by the row that the worker gave the request.

    Args:
        vocab_size: number of logits the model gives.
        load_tokenizer: raises ValueError where there is none. A thread calls it at once, so that no request has to wait
            for a large vocabulary.
    """

    def __init__(self, vocab_size: int, load_tokenizer: Callable[[], LLTokenizer]) -> None:
        self.vocab_size = vocab_size
        self.matchers: dict[int, Matcher] = {}
        self._ignored: dict[int, np.ndarray] = {}  # the ends that a request goes on after
        self._filler: MaskFiller | None = None
        self._tokenizer: Future[LLTokenizer] = Future()
        # Not a daemon: at its end Python would unwind that thread's stack, Rust's frames on it, too, which crashes. The
        # program waits for it, then, for a second or so; not a pool's thread, which an interrupt here leaves for ever.
        threading.Thread(target=self._load, args=[load_tokenizer], name="grammar-tokenizer").start()

    def _load(self, load_tokenizer: Callable[[], LLTokenizer]) -> None:
        try:
            self._tokenizer.set_result(load_tokenizer())
        except BaseException as error:  # for the request that asks for it
            self._tokenizer.set_exception(error)

    def add(self, row: int, request: NewRequest) -> None:
        """Follow a request that asks for it, from the tokens on that its output has already."""
        params = request.sampling_params
        if params.structured_outputs is None:
            return
        from lightvllm.structured.matcher import Matcher

        output = request.token_ids[request.num_prompt_tokens :]
        # The completions of one request: compiling for each of a hundred would hold all others up for seconds.
        twin = next((other for other in self.matchers.values() if other.params == params.structured_outputs), None)
        self.matchers[row] = Matcher(
            self._tokenizer.result, params.structured_outputs, request.eos_token_ids, output, twin
        )
        self._ignored[row] = np.array(request.eos_token_ids if params.ignore_eos else [], np.int64)

    def remove(self, row: int) -> None:
        """Forget a row's request; nothing happens when it has no matcher."""
        self.matchers.pop(row, None)
        self._ignored.pop(row, None)

    def masks(self, rows: list[int], unwanted: list[np.ndarray]) -> np.ndarray:
        """Which tokens each request may go on with.

        Args:
            unwanted: of each row: tokens that are forbidden besides, unless nothing else is left. A structured output
                must be able to go on, or to end; the ends that a request ignores are unwanted anyway.

        Returns:
            # [num_rows, num_words] int32; token t is bit t % 32 of word t // 32. All zero where a matcher failed.
        """
        from lightvllm.structured.matcher import MaskFiller, without_where_possible

        if self._filler is None:
            self._filler = MaskFiller(self.vocab_size)
        masks = self._filler.masks([self.matchers[row] for row in rows])
        for row, mask, token_ids in zip(rows, masks, unwanted, strict=True):
            without_where_possible(mask, np.concatenate([token_ids, self._ignored[row]]))
        return masks
