"""What the sampler remembers of each running request: one row of flat arrays each, so that a batch is an index."""

from dataclasses import dataclass

import numpy as np

from lightvllm.sampling_params import SamplingParams
from lightvllm.seeds import mix64
from lightvllm.worker.grammars import Grammars

# What a request's sampling needs beyond taking the most likely token: bits of `SamplingState.features`.
RANDOM = 1
ALLOWED_TOKEN_IDS = 2
BAD_WORDS = 4
MIN_TOKENS = 8
LOGIT_BIAS = 16
REPETITION_PENALTY = 32
OUTPUT_PENALTIES = 64  # frequency and presence
LOGPROBS = 128
GRAMMAR = 256
# Those that change the logits.
PROCESSORS = ALLOWED_TOKEN_IDS | BAD_WORDS | MIN_TOKENS | LOGIT_BIAS | REPETITION_PENALTY | OUTPUT_PENALTIES | GRAMMAR


class SamplingState:
    """The sampling parameters of up to `max_num_seqs` requests, each in the row its worker gives it.

    Numbers that every request has are in arrays; lists that few have are in dictionaries by row, and are only looked up
    for the rows whose `features` say so.

    Args:
        grammars: has the matchers of the rows whose form is not free; None if there never are any.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, grammars: Grammars | None = None) -> None:
        self.vocab_size = vocab_size
        self.grammars = grammars
        self.features = np.zeros(max_num_seqs, np.uint16)
        self.seed_keys = np.zeros(max_num_seqs, np.uint64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.temperature = np.ones(max_num_seqs, np.float32)
        self.sampled_temperature = np.zeros(max_num_seqs, np.float32)  # 0 where the most likely token is taken
        self.top_k = np.full(max_num_seqs, vocab_size, np.int64)  # vocab_size when off
        self.top_p = np.ones(max_num_seqs, np.float64)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.repetition_penalty = np.ones(max_num_seqs, np.float32)
        self.frequency_penalty = np.zeros(max_num_seqs, np.float32)
        self.presence_penalty = np.zeros(max_num_seqs, np.float32)
        self.min_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_logprobs = np.zeros(max_num_seqs, np.int64)  # vocab_size for the whole vocabulary
        self.stop_token_ids: dict[int, np.ndarray] = {}
        self.allowed_token_ids: dict[int, np.ndarray] = {}
        self.logit_bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # (token ids, biases)
        self.bad_words: dict[int, list[list[int]]] = {}

    def add(
        self, row: int, params: SamplingParams, seed: int, stop_token_ids: list[int], num_prompt_tokens: int
    ) -> None:
        """Fill a free row.

        Args:
            params: valid for the model (`validate_for_model`), its bad words resolved.
            seed: of all the request's draws.
            stop_token_ids: every token that ends the request, which `min_tokens` forbids at first.
            num_prompt_tokens: how many of the request's tokens are not output.
        """
        self.remove(row)
        self.seed_keys[row] = mix64(seed)
        self.num_prompt_tokens[row] = num_prompt_tokens
        self.temperature[row] = params.temperature
        self.sampled_temperature[row] = 0 if params.is_greedy else params.temperature
        self.top_k[row] = min(params.top_k or self.vocab_size, self.vocab_size)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.repetition_penalty[row] = params.repetition_penalty
        self.frequency_penalty[row] = params.frequency_penalty
        self.presence_penalty[row] = params.presence_penalty
        self.min_tokens[row] = params.min_tokens
        features = 0 if params.is_greedy else RANDOM
        if params.repetition_penalty != 1:
            features |= REPETITION_PENALTY
        if params.frequency_penalty or params.presence_penalty:
            features |= OUTPUT_PENALTIES
        if params.min_tokens and stop_token_ids:
            self.stop_token_ids[row] = np.array(stop_token_ids, np.int64)
            features |= MIN_TOKENS
        if params.logprobs is not None:
            self.num_logprobs[row] = self.vocab_size if params.logprobs == -1 else params.logprobs
            features |= LOGPROBS
        if params.structured_outputs is not None:
            features |= GRAMMAR
        self.features[row] = features | self._add_token_lists(row, params)

    def _add_token_lists(self, row: int, params: SamplingParams) -> int:
        features = 0
        if params.allowed_token_ids is not None:
            self.allowed_token_ids[row] = np.array(params.allowed_token_ids, np.int64)
            features |= ALLOWED_TOKEN_IDS
        if params.logit_bias:
            biases = params.logit_bias
            self.logit_bias[row] = (np.array(list(biases), np.int64), np.array(list(biases.values()), np.float32))
            features |= LOGIT_BIAS
        if params.bad_words:
            assert params.bad_words_token_ids is not None, "bad words reached the worker without their tokens"
            self.bad_words[row] = params.bad_words_token_ids
            features |= BAD_WORDS
        return features

    def remove(self, row: int) -> None:
        """Forget a row's request; nothing happens when the row is free."""
        self.features[row] = 0
        for by_row in (self.stop_token_ids, self.allowed_token_ids, self.logit_bias, self.bad_words):
            by_row.pop(row, None)


@dataclass(slots=True)
class SamplingBatch:
    """The requests that sample in one step. Its entries are numbered 0 to num_rows - 1, as the rows of the logits are.

    Attributes:
        state: of all running requests.
        rows: # [num_rows]; the row of `state`, and of `token_ids`, that each entry has.
        token_ids: # [max_num_seqs, max_model_len]; the known tokens of all running requests.
        num_tokens: # [num_rows]; how many tokens of each entry are known.
        features: # [num_rows]; what each entry needs.
    """

    state: SamplingState
    rows: np.ndarray
    token_ids: np.ndarray
    num_tokens: np.ndarray
    features: np.ndarray

    def entries_with(self, feature: int) -> np.ndarray:
        """The entries that have a feature, in order."""
        return np.flatnonzero(self.features & feature)
