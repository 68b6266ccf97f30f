"""From logits to tokens, for a whole batch at once, whatever each of its requests asks for.

The order is vLLM's: log-probabilities are read from the model's own logits; then come allowed_token_ids,
structured_outputs, bad_words, min_tokens, logit_bias and penalties; then greedy rows take the most likely token (of
equal ones the lowest id), and the others apply temperature, min_p, top_k and top_p, and draw.

A row's result does not depend on the other rows, bit for bit on a CPU: everything here is element-wise, an integer sum,
or a softmax over the row alone.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.engine.step import TokenLogprobs
from lightvllm.worker.draw import draw_anywhere, uniforms
from lightvllm.worker.logits_processors import process_logits
from lightvllm.worker.logprobs import chosen_logprobs
from lightvllm.worker.sampling_state import GRAMMAR, LOGPROBS, PROCESSORS, RANDOM, SamplingBatch, SamplingState


@dataclass(slots=True)
class SamplerOutput:
    """What was sampled. Entries are numbered as the rows of the logits are.

    Attributes:
        token_ids: # [num_rows] int64; -1 for an entry in `errors`.
        logprobs: entry -> log-probabilities, of the requests that asked for them.
        errors: entry -> why no token could be sampled for it.
    """

    token_ids: np.ndarray
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Samples the next token of the requests in a `SamplingState`."""

    def __init__(self, state: SamplingState) -> None:
        self.state = state

    def sample(self, logits: Tensor, rows: np.ndarray, token_ids: np.ndarray, num_tokens: np.ndarray) -> SamplerOutput:
        """Sample one token for each row of the logits.

        Args:
            logits: # [num_rows, vocab_size]; any float type, any device; not changed.
            rows: # [num_rows]; the row of the state, and of `token_ids`, of each request.
            token_ids: # [max_num_seqs, max_model_len]; the known tokens of all running requests.
            num_tokens: # [num_rows]; how many tokens of each request are known; the position of the new one.
        """
        features = self.state.features[rows]
        wanted = int(np.bitwise_or.reduce(features))
        if not wanted:
            return _sample_greedy(logits)
        batch = SamplingBatch(self.state, rows, token_ids, num_tokens, features)
        raw = logits.float()
        processed = raw
        if wanted & PROCESSORS:
            processed = raw.clone(memory_format=torch.contiguous_format)
            process_logits(processed, batch)
        output = SamplerOutput(np.full(len(rows), -1, np.int64), errors=_find_errors(raw, processed))
        if wanted & GRAMMAR:
            self._report_grammars(batch, output)
        self._choose(processed, batch, output)
        if wanted & GRAMMAR:
            self._follow(batch, output)
        if wanted & LOGPROBS:
            self._add_logprobs(raw, batch, output)
        return output

    def _choose(self, logits: Tensor, batch: SamplingBatch, output: SamplerOutput) -> None:
        usable = np.ones(len(batch.rows), bool)
        usable[list(output.errors)] = False
        is_random = (batch.features & RANDOM) != 0
        greedy, random = np.flatnonzero(usable & ~is_random), np.flatnonzero(usable & is_random)
        if len(greedy):
            output.token_ids[greedy] = kernels.most_likely(_take(logits, greedy)).cpu().numpy()
        if len(random):
            state, rows = self.state, batch.rows[random]
            drawn = draw_anywhere(
                _take(logits, random),
                uniforms(state.seed_keys[rows], batch.num_tokens[random]),
                temperature=state.temperature[rows],
                top_k=state.top_k[rows],
                top_p=state.top_p[rows],
                min_p=state.min_p[rows],
            )
            output.token_ids[random] = drawn.cpu().numpy()

    def _report_grammars(self, batch: SamplingBatch, output: SamplerOutput) -> None:
        """Say of the entries whose grammar could not be followed why; they have no token to choose."""
        assert self.state.grammars is not None
        for entry in batch.entries_with(GRAMMAR).tolist():
            error = self.state.grammars.matchers[batch.rows[entry]].error
            if error is not None:
                output.errors[entry] = error

    def _follow(self, batch: SamplingBatch, output: SamplerOutput) -> None:
        """Take the chosen tokens into the grammars."""
        assert self.state.grammars is not None
        for entry in batch.entries_with(GRAMMAR).tolist():
            matcher, token_id = self.state.grammars.matchers[batch.rows[entry]], int(output.token_ids[entry])
            if token_id >= 0:
                matcher.consume([token_id])
                if matcher.error is not None:
                    output.errors[entry], output.token_ids[entry] = matcher.error, -1

    def _add_logprobs(self, raw: Tensor, batch: SamplingBatch, output: SamplerOutput) -> None:
        asking = batch.entries_with(LOGPROBS)
        asking = asking[output.token_ids[asking] >= 0]
        if not len(asking):
            return
        chosen = torch.from_numpy(output.token_ids[asking]).to(raw.device)
        num_logprobs = self.state.num_logprobs[batch.rows[asking]].tolist()
        entries = chosen_logprobs(_take(raw, asking), chosen, num_logprobs)
        output.logprobs = dict(zip(asking.tolist(), entries, strict=True))


def _sample_greedy(logits: Tensor) -> SamplerOutput:
    """The most likely token of each row, when no row asks for more."""
    token_ids = kernels.most_likely(logits).cpu().numpy()
    errors = {} if (token_ids >= 0).all() else _find_errors(logits, logits)
    return SamplerOutput(token_ids, errors=errors)


def _find_errors(raw: Tensor, processed: Tensor) -> dict[int, str]:
    """Entry -> what is wrong with its logits. A NaN anywhere is the largest to `amax`."""
    largest = raw.amax(dim=-1).cpu().numpy()
    still_largest = largest if processed is raw else processed.amax(dim=-1).cpu().numpy()
    errors = {}
    for entry in np.flatnonzero(~np.isfinite(largest) | ~np.isfinite(still_largest)).tolist():
        if np.isnan(largest[entry]):
            errors[entry] = "the model's logits contain NaN"
        elif not np.isfinite(largest[entry]):
            kind = "contain +inf" if largest[entry] > 0 else "are all -inf"
            errors[entry] = f"the model's logits {kind}"
        else:
            errors[entry] = (
                "no token is left to choose: allowed_token_ids, structured_outputs, bad_words and min_tokens forbid all"
            )
    return errors


def _take(logits: Tensor, entries: np.ndarray) -> Tensor:
    """Some rows; without copying when they are all."""
    return logits if len(entries) == len(logits) else logits[torch.from_numpy(entries).to(logits.device)]
