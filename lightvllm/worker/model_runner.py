"""One step: `StepInput` in, the model over its tokens, `StepOutput` out.

`HostRunner` is for the CPU, and for attention backends that need the host; `worker/device_runner.py` for the GPU.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from lightvllm.attention.paged import LayerCache, PagedAttention, PagedBatch
from lightvllm.engine.step import NewRequest, PendingOutput, StepInput, StepOutput, TokenLogprobs
from lightvllm.models.decoder import CausalLM
from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.grammars import Grammars
from lightvllm.worker.logprobs import prompt_logprobs
from lightvllm.worker.requests import RequestRows, StepBatch
from lightvllm.worker.sampler import Sampler, SamplingState

# Prompt positions whose logits are computed at once: bounds the memory that the log-probabilities of a prompt take.
ROWS_AT_ONCE = 64


class ModelRunner(ABC):
    """Runs the model for the requests it is told of.

    Args:
        model: on its device, in evaluation mode.
        cache: the paged KV cache, one entry a layer.
        grammars: of the requests with structured_outputs; None if there never are any.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: list[LayerCache],
        max_num_seqs: int,
        max_model_len: int,
        grammars: Grammars | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.device = cache[0].key.device
        self.requests = RequestRows(max_num_seqs, max_model_len, block_size=cache[0].key.shape[1])
        self.grammars = grammars
        self.sampling = SamplingState(max_num_seqs, model.config.vocab_size, grammars)
        self.sampler = Sampler(self.sampling)
        # Requests that want log-probabilities of their prompt -> how many per position.
        self.prompt_logprobs: dict[str, int] = {}

    @abstractmethod
    def submit(self, step: StepInput) -> PendingOutput:
        """Compute the step's tokens and sample where a request's last token is among them.

        See `lightvllm.executor.base.Executor.submit`.
        """
        ...

    @abstractmethod
    def _forward(self, batch: StepBatch, block_table: np.ndarray) -> Tensor:
        """block_table: [num_requests, max_blocks] -> hidden states, [num_tokens, hidden_size]"""
        ...

    def hidden_states(self, token_ids: list[int]) -> Tensor:
        """Those of tokens that no request has, [num_tokens, hidden_size]; they take the first blocks of the cache."""
        positions = np.arange(len(token_ids))
        length = np.array([len(token_ids)])
        batch = StepBatch(
            rows=np.array([0]),
            query_lens=length,
            seq_lens=length,
            samples=np.array([False]),
            token_ids=np.array(token_ids),
            positions=positions,
            lengths=np.full(len(token_ids), len(token_ids)),
            slot_mapping=positions,
        )
        blocks = np.arange(-(-len(token_ids) // self.requests.block_size), dtype=np.int32)
        return self._forward(batch, blocks[None])

    def _block_table(self, batch: StepBatch) -> np.ndarray:
        """[num_requests, as many blocks as the longest has]"""
        num_blocks = -(-int(batch.seq_lens.max()) // self.requests.block_size)
        return self.requests.block_table[batch.rows, :num_blocks]

    def profile_run(self, num_tokens: int, num_requests: int) -> None:
        """Run the most expensive step there can be of so many tokens and requests, to see what memory it takes.

        The first requests are pieces at the end of the longest context, the others have one token; all sample in the
        dearest way. Their blocks are all block 0, and nothing of them is kept.
        """
        longest = self.requests.token_ids.shape[1] - 1
        params = SamplingParams(top_k=100, top_p=0.9, min_p=0.01, presence_penalty=0.5, logprobs=1)
        step = StepInput()
        for i in range(num_requests):
            num_new = min(num_tokens - (num_requests - 1 - i), longest)
            length = longest if i == 0 or num_new > 1 else 1
            blocks = [0] * -(-length // self.requests.block_size)
            request = NewRequest(f"profile-{i}", [0] * length, length, length - num_new, blocks, params, seed=0)
            step.request_ids.append(request.request_id)
            step.num_scheduled_tokens.append(num_new)
            step.new_requests.append(request)
            num_tokens -= num_new
        self.submit(step)()
        self._update_requests(StepInput(dropped_request_ids=step.request_ids))

    def _update_requests(self, step: StepInput) -> None:
        for request_id in step.dropped_request_ids:
            row = self.requests.drop(request_id)
            if row is not None:
                self.sampling.remove(row)
                if self.grammars is not None:
                    self.grammars.remove(row)
                self.prompt_logprobs.pop(request_id, None)
        for request in step.new_requests:
            row = self.requests.add(request)
            params = request.sampling_params
            self.sampling.add(row, params, request.seed, request.stop_token_ids, request.num_prompt_tokens)
            if self.grammars is not None:
                self.grammars.add(row, request)
            if params.prompt_logprobs is not None:
                self.prompt_logprobs[request.request_id] = params.prompt_logprobs
        for request_id, block_ids in step.new_block_ids.items():
            self.requests.append_blocks(request_id, block_ids)

    def _sample(self, step: StepInput, batch: StepBatch, logits: Tensor, output: StepOutput) -> np.ndarray:
        """Sample for the requests that reached their last token, into `output`.

        logits: [num_samples, vocab_size] -> the tokens, [num_samples]
        """
        samples = np.flatnonzero(batch.samples)
        if not len(samples):
            return np.empty(0, dtype=np.int64)
        rows = batch.rows[samples]
        sampled = self.sampler.sample(logits, rows, self.requests.token_ids, self.requests.num_tokens[rows])
        for i, token in zip(samples.tolist(), sampled.token_ids.tolist(), strict=True):
            output.token_ids[i] = [token]
        for i, entry in sampled.logprobs.items():
            output.logprobs[step.request_ids[samples[i]]] = [entry]
        for i, message in sampled.errors.items():
            output.errors[step.request_ids[samples[i]]] = message
            output.token_ids[samples[i]] = []
        return sampled.token_ids

    def _prompt_logprobs(self, step: StepInput, batch: StepBatch, hidden: Tensor) -> dict[str, list[TokenLogprobs]]:
        """For the requests that want them: the distribution at each prompt position of this step but the prompt's last,
        whose next token is not the prompt's."""
        result: dict[str, list[TokenLogprobs]] = {}
        ends = np.cumsum(batch.query_lens)
        for i, request_id in enumerate(step.request_ids) if self.prompt_logprobs else ():
            if request_id not in self.prompt_logprobs:
                continue
            row, end = batch.rows[i], int(batch.seq_lens[i])
            start = end - int(batch.query_lens[i])
            stop = min(end, int(self.requests.num_prompt_tokens[row]) - 1)
            if start < stop:
                first = int(ends[i] - batch.query_lens[i])
                next_ids = torch.from_numpy(self.requests.token_ids[row, start + 1 : stop + 1].astype(np.int64))
                entries = result[request_id] = []
                parts = zip(
                    hidden[first:].split(ROWS_AT_ONCE), next_ids.to(self.device).split(ROWS_AT_ONCE), strict=False
                )
                for rows, next_of_rows in parts:
                    logits = self.model.compute_logits(rows[: len(next_of_rows)])
                    entries += prompt_logprobs(logits, next_of_rows, self.prompt_logprobs[request_id])
        return result


class HostRunner(ModelRunner):
    """Runs one step after the other, and returns when it is done.

    Args:
        backend: how attention reads the cache.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: list[LayerCache],
        backend: type[PagedAttention],
        max_num_seqs: int,
        max_model_len: int,
        grammars: Grammars | None = None,
    ) -> None:
        super().__init__(model, cache, max_num_seqs, max_model_len, grammars)
        self.backend = backend

    @torch.inference_mode()
    def submit(self, step: StepInput) -> PendingOutput:
        """See `ModelRunner.submit`."""
        self._update_requests(step)
        batch = self.requests.batch(step.request_ids, step.num_scheduled_tokens)
        hidden = self._forward(batch, self._block_table(batch))
        output = StepOutput(token_ids=[[] for _ in step.request_ids])
        sampled = self._sample(step, batch, self._logits(batch, hidden), output)
        output.prompt_logprobs = self._prompt_logprobs(step, batch, hidden)
        finite = hidden.sum(dim=-1, dtype=torch.float32).isfinite()
        if not finite.all():
            report_broken(step, batch, finite.cpu().numpy(), output)
        self.requests.advance(batch, sampled)
        return lambda: output

    def _forward(self, batch: StepBatch, block_table: np.ndarray) -> Tensor:
        """See `ModelRunner._forward`."""
        attention = self.backend(
            self.cache, PagedBatch(batch.query_lens, batch.seq_lens, block_table, batch.slot_mapping)
        )
        token_ids, positions, lengths = (
            torch.from_numpy(x).to(self.device) for x in (batch.token_ids, batch.positions, batch.lengths)
        )
        return self.model(token_ids, positions, attention, lengths)

    def _logits(self, batch: StepBatch, hidden: Tensor) -> Tensor:
        """hidden: [num_tokens, hidden_size] -> of the tokens that are sampled behind, [num_samples, vocab_size]"""
        last = np.cumsum(batch.query_lens)[batch.samples] - 1
        if not len(last):
            return hidden[:0]
        return self.model.compute_logits(hidden[torch.from_numpy(last).to(self.device)])


def report_broken(step: StepInput, batch: StepBatch, finite: np.ndarray, output: StepOutput) -> None:
    """End the requests whose hidden states are not finite, [num_tokens] bool: in the middle of a prompt too.

    Attention carries a NaN to all tokens of the same step, and whole blocks of them may be in the prefix cache by now.
    It forgets what a failed request wrote in the step at hand, but not what was written in earlier ones.
    """
    if finite.all():
        return
    broken = np.logical_or.reduceat(~finite, np.cumsum(batch.query_lens) - batch.query_lens)
    for i in np.flatnonzero(broken).tolist():
        output.errors[step.request_ids[i]] = "the model's hidden states contain NaN or infinity"
        output.token_ids[i] = []
