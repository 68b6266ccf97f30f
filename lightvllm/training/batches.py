"""From packed sequences to the tensors of a training step, in an order that is a function of (seed, epoch)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvllm.attention.base import Attention
from lightvllm.training.dataset import PackedDataset
from lightvllm.training.packed_attention import Layout, MaskedAttention, PackedAttention

# Batches whose sequences are sorted by length together: processes that share a batch finish together, and the order is
# still random.
_SORTED_TOGETHER = 32
_GAP_SHARE = 0.15
_MAX_GAP = 1400
_PADDED_TO = 64  # few different shapes
_NO_SEGMENT = 255


@dataclass
class Batch:
    """One step's packed sequences: end to end, or filled up to one length (`segments` is given).

    Attributes:
        tokens: [num_tokens] int64
        positions: [num_tokens] int64
        labels: [num_tokens] int64; the token that follows in the same segment, -100 where none does.
        answers: [num_tokens] bool, True where that token belongs to an answer.
        layouts: where each sequence lies, for `PackedAttention`.
        segments: [batch_size, longest] uint8, for one masked attention over all sequences.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    answers: Tensor
    layouts: list[Layout]
    segments: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on that device."""
        tensors = (self.tokens, self.positions, self.labels, self.answers)
        tokens, positions, labels, answers = (tensor.to(device, non_blocking=True) for tensor in tensors)
        layouts = [Layout(x.start, x.schema_length, x.branches.to(device), x.valid.to(device)) for x in self.layouts]
        segments = None if self.segments is None else self.segments.to(device, non_blocking=True)
        return Batch(tokens, positions, labels, answers, layouts, segments)

    def attention(self) -> Attention:
        """Who sees whom. A processor gains by computing only what is seen, an accelerator by one large call."""
        if self.segments is None:
            return PackedAttention(self.layouts)
        return MaskedAttention(self.segments)


def epoch_order(dataset: PackedDataset, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The sequence indices of each batch of an epoch; a last, smaller batch is left out."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(dataset))
    lengths = np.diff(dataset.offsets)
    order = order[: len(order) // batch_size * batch_size]
    batches: list[np.ndarray] = []
    window = batch_size * _SORTED_TOGETHER
    for start in range(0, len(order), window):
        part = order[start : start + window]
        part = part[np.argsort(lengths[part], kind="stable")]
        whole = np.split(part, len(part) // batch_size)
        batches += [whole[i] for i in rng.permutation(len(whole))]
    return batches


def packed_positions(segments: np.ndarray) -> np.ndarray:
    """Positions that count through the schema and, for each branch, on from its end. segments: [length] -> [length]"""
    counts = np.arange(len(segments))
    starts = np.flatnonzero(np.diff(segments, prepend=segments[:1] - 1))
    offsets = np.zeros(len(segments), np.int64)
    schema_length = int((segments == 0).sum())
    for start in starts[1:] if segments[0] == 0 else starts:
        offsets[start:] = start - schema_length
    return counts - offsets


def _with_gap(positions: np.ndarray, schema_length: int, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= _GAP_SHARE:
        return positions
    hole = int(rng.integers(1, schema_length + 1))
    return positions + rng.integers(_MAX_GAP) * (positions >= hole)


def collate(dataset: PackedDataset, indices: np.ndarray, gap_seed: int | None = None, padded: bool = False) -> Batch:
    """The batch of these sequences, `padded` to a common length or end to end.

    With a `gap_seed`, some sequences get a hole in their positions inside the schema: the model meets the distances of
    schemas several times as long as it trains on, at no cost.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    for index in indices:
        tokens, segments, targets = dataset.sequence(int(index))
        positions = packed_positions(segments)
        if gap_seed is not None:
            positions = _with_gap(positions, int((segments == 0).sum()), np.random.default_rng((gap_seed, int(index))))
        follows = np.append(segments[1:] == segments[:-1], False)
        labels = np.where(follows, np.append(tokens[1:], 0).astype(np.int64), -100)
        rows.append((tokens.astype(np.int64), positions, labels, np.append(targets[1:], False), segments))
    if padded:
        longest = -(-max(len(row[0]) for row in rows) // _PADDED_TO) * _PADDED_TO
        fills = (0, 0, -100, False, _NO_SEGMENT)
        rows = [tuple(_fill(part, longest, fill) for part, fill in zip(row, fills, strict=True)) for row in rows]
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)]
    if padded:
        return Batch(columns[0], columns[1], columns[2], columns[3], [], columns[4].view(len(rows), -1))
    starts = np.cumsum([0] + [len(row[0]) for row in rows])
    layouts = [Layout.of(row[4], int(start)) for row, start in zip(rows, starts, strict=False)]
    return Batch(columns[0], columns[1], columns[2], columns[3], layouts)


def _fill(part: np.ndarray, length: int, value: int) -> np.ndarray:
    return np.concatenate((part, np.full(length - len(part), value, part.dtype)))
