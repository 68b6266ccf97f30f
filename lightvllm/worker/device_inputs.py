"""What a step's kernels read: arrays on the host, and tensors on the device in the same order."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvllm.attention.paged import DeviceBatch
from lightvllm.worker.draw import uniforms
from lightvllm.worker.requests import StepBatch
from lightvllm.worker.sampling_state import SamplingState
from lightvllm.worker.staging import Staging

_INT32, _INT64, _FLOAT32, _FLOAT64 = (np.dtype(x) for x in (np.int32, np.int64, np.float32, np.float64))


@dataclass(frozen=True)
class DeviceInputs:
    """One step's inputs on the device.

    Attributes:
        token_ids: [num_tokens] int64; -1 - row for the last token of that row, see `StepBatch`.
        positions, lengths, slots: [num_tokens] int64, see `StepBatch`.
        seq_lens: [num_requests] int32
        query_starts: [num_requests + 1] int32
        last: [num_samples] int64, the tokens whose logits are sampled from.
        rows: [num_samples] int64, the rows of these requests.
        u, top_p: [num_samples] float64; temperature, min_p: float32; top_k: int64; see `lightvllm.worker.draw`. A
            temperature of 0 is greedy.
    """

    token_ids: Tensor
    positions: Tensor
    lengths: Tensor
    slots: Tensor
    seq_lens: Tensor
    query_starts: Tensor
    last: Tensor
    rows: Tensor
    u: Tensor
    top_p: Tensor
    top_k: Tensor
    temperature: Tensor
    min_p: Tensor

    def attention_batch(
        self, block_table: Tensor, num_decodes: int, max_query_len: int, max_seq_len: int
    ) -> DeviceBatch:
        """What attention is told of the step."""
        return DeviceBatch(
            num_decodes, max_query_len, max_seq_len, self.query_starts, self.seq_lens, block_table, self.slots
        )


def _fields(num_tokens: int, num_requests: int, num_samples: int) -> list[tuple[np.dtype, tuple[int, ...]]]:
    tokens = [(_INT64, (num_tokens,))] * 4
    requests = [(_INT32, (num_requests,)), (_INT32, (num_requests + 1,))]
    samples = [(dtype, (num_samples,)) for dtype in (_INT64, _INT64, _FLOAT64, _FLOAT64, _INT64, _FLOAT32, _FLOAT32)]
    return [*tokens, *requests, *samples]


class InputSender:
    """Puts each step's inputs on the device.

    Args:
        max_blocks: of one request.
        scratch_slot: of the cache, the first of a block that no request has: there the decodes that pad a graph's batch
            write. Their row is the one behind those of the requests.
    """

    def __init__(
        self,
        sampling: SamplingState,
        max_num_tokens: int,
        max_num_seqs: int,
        max_blocks: int,
        scratch_slot: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.sampling = sampling
        self.scratch_slot, self.scratch_row, self.block_size = scratch_slot, max_num_seqs, block_size
        # Padded, decodes can be more than the tokens of a step may be.
        num_tokens, num_seqs = max_num_tokens + max_num_seqs, 2 * max_num_seqs
        capacity = num_tokens * 4 * 8 + num_seqs * (10 * 8 + max_blocks * 4) + 1024
        self.staging = Staging(capacity, device)

    def send(self, batch: StepBatch, block_table: np.ndarray) -> tuple[DeviceInputs, Tensor]:
        """A step of any kind: its inputs, and the block table [num_requests, max_blocks] int32."""
        samples = np.flatnonzero(batch.samples)
        ends = np.cumsum(batch.query_lens)
        query_starts = np.concatenate([[0], ends]).astype(np.int32)
        rows = batch.rows[samples]
        num_tokens = batch.seq_lens[samples]
        arrays = [
            *(batch.token_ids, batch.positions, batch.lengths, batch.slot_mapping),
            *(batch.seq_lens.astype(np.int32), query_starts, ends[samples] - 1, rows),
            *self._sampling(rows, num_tokens),
            block_table,
        ]
        self.staging.send(arrays)
        *fields, table = self.staging.views([(array.dtype, array.shape) for array in arrays])
        return DeviceInputs(*fields), table

    def send_decodes(self, batch: StepBatch, block_table: np.ndarray, size: int) -> Tensor:
        """One token of each request, padded to `size` requests; the block table alone, which has its own length.

        All else is where `decode_inputs` says.
        """
        count = len(batch.rows)

        def padded(array: np.ndarray, value: int) -> np.ndarray:
            result = np.full(size, value, dtype=array.dtype)
            result[:count] = array
            return result

        table = np.full((size, block_table.shape[1]), self.scratch_slot // self.block_size, dtype=np.int32)
        table[:count] = block_table
        sampling = (padded(array, 0) for array in self._sampling(batch.rows, batch.seq_lens))
        arrays = [
            *(padded(batch.token_ids, 0), padded(batch.positions, 0), padded(batch.lengths, 1)),
            padded(batch.slot_mapping, self.scratch_slot),
            *(padded(batch.seq_lens.astype(np.int32), 1), np.arange(size + 1, dtype=np.int32)),
            *(np.arange(size), padded(batch.rows, self.scratch_row), *sampling, table),
        ]
        starts = self.staging.send(arrays)
        return self.staging.view(starts[-1], table.dtype, table.shape)

    def decode_inputs(self, size: int) -> DeviceInputs:
        """Where the inputs of `size` decodes always are."""
        return DeviceInputs(*self.staging.views(_fields(size, size, size)))

    def _sampling(self, rows: np.ndarray, num_tokens: np.ndarray) -> list[np.ndarray]:
        """u, top_p, top_k, temperature and min_p of these rows."""
        state = self.sampling
        return [
            uniforms(state.seed_keys[rows], num_tokens),
            state.top_p[rows],
            state.top_k[rows],
            state.sampled_temperature[rows],
            state.min_p[rows],
        ]
