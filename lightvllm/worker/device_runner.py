"""Steps on a GPU that the host never holds up: inputs go over in one copy, tokens are chosen where the model runs, and
the next step may be submitted before anyone has read them.

Requests that compute one token come first in a step; steps of nothing else run as captured graphs.
"""

import numpy as np
import torch
from torch import Tensor

from lightvllm import kernels
from lightvllm.attention.paged import DeviceAttention, LayerCache
from lightvllm.engine.step import PendingOutput, StepInput, StepOutput
from lightvllm.models.decoder import CausalLM
from lightvllm.worker.cuda_graph import DecodeGraphs, Sampling
from lightvllm.worker.device_inputs import DeviceInputs, InputSender
from lightvllm.worker.draw import draw_on_device
from lightvllm.worker.grammars import Grammars
from lightvllm.worker.model_runner import ModelRunner, report_broken
from lightvllm.worker.requests import StepBatch
from lightvllm.worker.sampling_state import RANDOM
from lightvllm.worker.staging import Fetching

NOT_FINITE = "the model's logits contain NaN or infinity"


class DeviceRunner(ModelRunner):
    """See `ModelRunner`.

    Args:
        cache: with one block more than requests use, which the padding of graphs writes to.
        max_num_batched_tokens: in one step.
        uses_graphs: whether steps of decodes are captured.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: list[LayerCache],
        backend: type[DeviceAttention],
        max_num_seqs: int,
        max_model_len: int,
        grammars: Grammars | None,
        max_num_batched_tokens: int,
        uses_graphs: bool,
    ) -> None:
        super().__init__(model, cache, max_num_seqs, max_model_len, grammars)
        self.backend = backend
        self.max_model_len = max_model_len
        num_blocks, block_size = cache[0].key.shape[:2]
        max_blocks = self.requests.block_table.shape[1]
        self.sender = InputSender(
            self.sampling,
            max_num_batched_tokens,
            max_num_seqs,
            max_blocks,
            scratch_slot=(num_blocks - 1) * block_size,
            block_size=block_size,
            device=self.device,
        )
        self.sampled = Fetching(8 * 2 * max_num_seqs, self.device)
        self.finite = Fetching(max_num_batched_tokens + max_num_seqs, self.device)
        # The last token sampled of each row, and of the row that padding has.
        self.last_tokens = torch.zeros(max_num_seqs + 1, dtype=torch.int64, device=self.device)
        model.model.rotary.keep(max_model_len, self.device)
        self.graphs = None
        if uses_graphs:
            self.graphs = DecodeGraphs(self._decode, max_num_seqs, max_blocks, self.device)

    @torch.inference_mode()
    def submit(self, step: StepInput) -> PendingOutput:
        """See `lightvllm.executor.base.Executor.submit`."""
        self._update_requests(step)
        order = np.argsort([num_tokens > 1 for num_tokens in step.num_scheduled_tokens], kind="stable").tolist()
        ordered = StepInput(
            [step.request_ids[i] for i in order],
            [step.num_scheduled_tokens[i] for i in order],
        )
        batch = self.requests.batch(ordered.request_ids, ordered.num_scheduled_tokens)
        pending = self._run(ordered, batch)

        def in_order() -> StepOutput:
            output = pending()
            token_ids = output.token_ids
            output.token_ids = [[]] * len(order)
            for i, sampled in zip(order, token_ids, strict=True):
                output.token_ids[i] = sampled
            return output

        return in_order

    def _run(self, step: StepInput, batch: StepBatch) -> PendingOutput:
        features = self.sampling.features[batch.rows[batch.samples]]
        wanted = int(np.bitwise_or.reduce(features)) if len(features) else 0
        reads_prompt = bool(self.prompt_logprobs) and self._reads_prompt(step, batch)
        on_host = wanted & ~RANDOM or reads_prompt
        sampling = Sampling.ON_HOST if on_host else Sampling.RANDOM if wanted else Sampling.GREEDY
        block_table = self._block_table(batch)
        is_decode = int(batch.query_lens.max()) == 1
        if (
            is_decode
            and not reads_prompt
            and self.graphs is not None
            and (size := self.graphs.size_for(len(batch.rows)))
        ):
            table = self.sender.send_decodes(batch, block_table, size)
            chosen, hidden = self.graphs.run(size, sampling, table), None
            sampled = np.flatnonzero(batch.samples)  # amid a prompt a request may compute a single token, too
        else:
            hidden, inputs = self._run_model(batch, block_table)
            chosen = self._choose(hidden[inputs.last], inputs, sampling)
            sampled = np.arange(len(chosen))
        if sampling is Sampling.ON_HOST:
            logits = chosen if len(sampled) == len(chosen) else chosen[torch.from_numpy(sampled).to(self.device)]
            output = self._sample_on_host(step, batch, hidden, logits)
            return lambda: output
        self.requests.advance(batch, None)
        return self._pending(step, batch, hidden, chosen, sampled)

    def _reads_prompt(self, step: StepInput, batch: StepBatch) -> bool:
        """Whether the step gives log-probabilities of a prompt, for which hidden states are needed."""
        first = batch.seq_lens - batch.query_lens
        is_before_last = first < self.requests.num_prompt_tokens[batch.rows] - 1
        return any(
            wanted and request_id in self.prompt_logprobs
            for request_id, wanted in zip(step.request_ids, is_before_last, strict=True)
        )

    def _decode(self, size: int, sampling: Sampling, block_table: Tensor) -> Tensor:
        """A padded step of decodes, whose inputs are on the device: logits for the host, or tokens, one a request."""
        inputs = self.sender.decode_inputs(size)
        attention = self.backend(self.cache, inputs.attention_batch(block_table, size, 0, self.max_model_len))
        return self._choose(self._hidden(inputs, attention), inputs, sampling)

    def _forward(self, batch: StepBatch, block_table: np.ndarray) -> Tensor:
        """See `ModelRunner._forward`."""
        return self._run_model(batch, block_table)[0]

    def _run_model(self, batch: StepBatch, block_table: np.ndarray) -> tuple[Tensor, DeviceInputs]:
        """Any step, as it is: hidden states [num_tokens, hidden_size], and what is on the device of it."""
        inputs, table = self.sender.send(batch, block_table)
        num_decodes = int((batch.query_lens == 1).sum())
        longest = int(batch.query_lens.max()) if num_decodes < len(batch.query_lens) else 0
        attention = self.backend(
            self.cache, inputs.attention_batch(table, num_decodes, longest, int(batch.seq_lens.max()))
        )
        return self._hidden(inputs, attention), inputs

    def _hidden(self, inputs: DeviceInputs, attention: DeviceAttention) -> Tensor:
        token_ids = inputs.token_ids
        known = torch.where(token_ids < 0, self.last_tokens[(-1 - token_ids).clamp(min=0)], token_ids)
        return self.model(known, inputs.positions, attention, inputs.lengths)

    def _choose(self, hidden: Tensor, inputs: DeviceInputs, sampling: Sampling) -> Tensor:
        """hidden: [num_samples, hidden_size] -> logits, or tokens [num_samples] int64, -1 where they are not finite"""
        logits = self.model.compute_logits(hidden)
        if sampling is Sampling.ON_HOST or not len(logits):
            return logits
        tokens = kernels.most_likely(logits)
        if sampling is Sampling.RANDOM:
            is_random = inputs.temperature > 0
            temperature = torch.where(is_random, inputs.temperature, 1)
            drawn = draw_on_device(logits, inputs.u, temperature, inputs.top_k, inputs.top_p, inputs.min_p)
            tokens = torch.where(is_random & (tokens >= 0), drawn, tokens)
        self.last_tokens[inputs.rows] = tokens.clamp(min=0)
        return tokens

    def _sample_on_host(self, step: StepInput, batch: StepBatch, hidden: Tensor | None, logits: Tensor) -> StepOutput:
        """What asks for more than a token, or whose tokens depend on those before otherwise than through the model."""
        output = StepOutput(token_ids=[[] for _ in step.request_ids])
        sampled = self._sample(step, batch, logits, output)
        if hidden is not None:
            output.prompt_logprobs = self._prompt_logprobs(step, batch, hidden)
            report_broken(step, batch, _finite(hidden).cpu().numpy(), output)
        self.requests.advance(batch, sampled)
        return output

    def _pending(
        self, step: StepInput, batch: StepBatch, hidden: Tensor | None, tokens: Tensor, sampled: np.ndarray
    ) -> PendingOutput:
        """What the step gave, on its way.

        Args:
            hidden: [num_tokens, hidden_size], of which is to be seen whether they are finite; None where a graph ran:
                then the logits show it.
            tokens: [num_rows] int64
            sampled: [num_samples], the rows of `tokens` of the requests that sample.
        """
        samples = np.flatnonzero(batch.samples).tolist()
        tokens_later = self.sampled.fetch(tokens) if samples else None
        finite_later = None if hidden is None else self.finite.fetch(_finite(hidden))

        def wait() -> StepOutput:
            output = StepOutput(token_ids=[[] for _ in step.request_ids])
            for i, token in zip(samples, tokens_later.numpy()[sampled].tolist() if tokens_later else (), strict=True):
                if token < 0:
                    output.errors[step.request_ids[i]] = NOT_FINITE
                else:
                    output.token_ids[i] = [token]
            if finite_later is not None:
                report_broken(step, batch, finite_later.numpy(), output)
            return output

        return wait


def _finite(hidden: Tensor) -> Tensor:
    """hidden: [num_tokens, hidden_size] -> [num_tokens] bool"""
    return hidden.sum(dim=-1, dtype=torch.float32).isfinite()
