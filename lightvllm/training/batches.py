"""From packed sequences to the tensors of a training step, in an order that is a function of (seed, epoch)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightvllm.training.dataset import PackedDataset
from lightvllm.training.packed_attention import Layout

# Batches whose sequences are sorted by length together: processes that share a batch finish together, and the order is
# still random.
_SORTED_TOGETHER = 32
_GAP_SHARE = 0.15
_MAX_GAP = 1400


@dataclass
class Batch:
    """One step's packed sequences, end to end.

    Attributes:
        tokens: [num_tokens] int64
        positions: [num_tokens] int64
        labels: [num_tokens] int64; the token that follows in the same segment, -100 where none does.
        answers: [num_tokens] bool, True where that token belongs to an answer.
        layouts: where each sequence lies, for `PackedAttention`.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    answers: Tensor
    layouts: list[Layout]

    def to(self, device: torch.device) -> "Batch":
        """The batch on that device."""
        layouts = [
            Layout(x.start, x.schema_length, x.branches.to(device), x.valid.to(device)) for x in self.layouts
        ]  # fmt: skip
        return Batch(
            self.tokens.to(device), self.positions.to(device), self.labels.to(device), self.answers.to(device), layouts
        )


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


def collate(dataset: PackedDataset, indices: np.ndarray, gap_seed: int | None = None) -> Batch:
    """The batch of these sequences.

    With a `gap_seed`, some sequences get a hole in their positions inside the schema: the model meets the distances of
    schemas several times as long as it trains on, at no cost.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    layouts, start = [], 0
    for index in indices:
        tokens, segments, targets = dataset.sequence(int(index))
        positions = packed_positions(segments)
        if gap_seed is not None:
            positions = _with_gap(positions, int((segments == 0).sum()), np.random.default_rng((gap_seed, int(index))))
        follows = np.append(segments[1:] == segments[:-1], False)
        labels = np.where(follows, np.append(tokens[1:], 0).astype(np.int64), -100)
        answers = np.append(targets[1:], False)
        rows.append((tokens.astype(np.int64), positions, labels, answers))
        layouts.append(Layout.of(segments, start))
        start += len(tokens)
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True)]
    return Batch(columns[0], columns[1], columns[2], columns[3], layouts)
