"""What a KV cache saves: the operations of each next token with and without one, and what the cache weighs.

A token's keys and values depend on nothing behind it, so they never change once they are computed. Without a cache they
are computed again, for the whole sequence, at each of its tokens.

Counted are the multiplications and additions of the matrix products, two operations for each weight that a token meets,
and of attention, as in section 2.1 of Kaplan et al., 2020 (https://arxiv.org/abs/2001.08361). Norms, rotations and the
softmax are left out.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightvllm.config import DEFAULT_MODEL
from lightvllm.hub import resolve_model
from lightvllm.learn.table import table
from lightvllm.model_config import ModelConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Point:
    """A sequence of `length` tokens, whose last one has just been taken in to predict the next.

    Attributes:
        step_with, step_without: operations of this last token, with the cache and without.
        total_with, total_without: of all tokens so far, each of which predicted the next.
        cache_bytes: of the cache, which holds all of them.
    """

    length: int
    step_with: int
    step_without: int
    total_with: int
    total_without: int
    cache_bytes: int


@dataclass(frozen=True)
class KV:
    """How cost grows with a sequence.

    Attributes:
        points: for each length from 1 on.
        dtype: of the weights and the cache.
        weight_bytes: of the matrices that tokens are multiplied with, before any quantization.
        token_bytes: that one more token takes in the cache.
    """

    model: str
    dtype: str
    points: tuple[Point, ...]
    weight_bytes: int
    token_bytes: int

    def table(self) -> str:
        """A line for each power of two, and the last length."""
        header = ["tokens", "next token", "cached", "ratio", "all so far", "cached", "ratio", "cache"]
        rows = []
        for point in self._shown():
            row = [f"{point.length:,}"]
            for without, cached in ((point.step_without, point.step_with), (point.total_without, point.total_with)):
                row += [_operations(without), _operations(cached), f"{without / cached:,.1f}x"]
            rows.append([*row, _bytes(point.cache_bytes)])
        setting = (
            f"{self.model} in {self.dtype}: {_bytes(self.weight_bytes)} of weights, "
            f"{_bytes(self.token_bytes)} of cache for a token; operations without a cache and with one"
        )
        return f"{setting}\n\n{table(header, rows)}"

    def plot(self) -> "Figure":
        """Operations of a token, operations so far, and the cache's bytes, by the sequence's length."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.4), layout="constrained")
        step, total, memory = figure.subplots(1, 3)
        lengths = [point.length for point in self.points]
        for panel, name, title in (
            (step, "step", "operations for one more token"),
            (total, "total", "operations for all so far"),
        ):
            for kind, label in (("without", "without a cache"), ("with", "with a cache")):
                panel.plot(lengths, [getattr(point, f"{name}_{kind}") for point in self.points], label=label)
            panel.set_title(title, fontsize=9)
        memory.plot(lengths, [point.cache_bytes for point in self.points], color="tab:orange", label="the cache")
        memory.axhline(self.weight_bytes, color="tab:grey", linestyle="--", label="the weights")
        memory.set_title("bytes of one sequence's cache", fontsize=9)
        for panel in (step, total, memory):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xlabel("tokens in the sequence")
            panel.legend(fontsize=8)
        figure.suptitle(f"{self.model}, {self.dtype}", fontsize=10)
        return figure

    def _shown(self) -> Iterator[Point]:
        for point in self.points:
            if not point.length & (point.length - 1) or point is self.points[-1]:
                yield point


def kv(model: ModelConfig | str | Path | None = None, *, max_len: int | None = None) -> KV:
    """Count what generating a sequence costs, from its first token on.

    Args:
        model: its configuration, a checkpoint folder or a hub name; by default the model that is shipped.
        max_len: tokens up to which to count; by default 4,096, or the model's positions if these are fewer.

    Raises:
        ValueError: there is no such model, or `max_len` is out of range.
    """
    name = "model"
    if not isinstance(model, ModelConfig):
        path = resolve_model(DEFAULT_MODEL if model is None else model)
        name, model = path.name if model is None else str(model), ModelConfig.from_pretrained(path)
    if max_len is None:
        max_len = min(4096, model.max_position_embeddings)
    if not 1 <= max_len <= model.longest:
        raise ValueError(f"max_len: {max_len} is out of range, expected 1 to the model's {model.longest:.0f} positions")
    if model.dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype: {model.dtype!r} is not supported, expected one of {list(DTYPE_BYTES)}")
    size = DTYPE_BYTES[model.dtype]
    return KV(
        name,
        model.dtype,
        tuple(_points(model, max_len, size)),
        (layer_weights(model) + head_weights(model)) * size,
        token_bytes(model, size),
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `kv`."""
    parser.add_argument(
        "--model", metavar="TEXT", help="checkpoint folder or hub name (default: the model that is shipped)"
    )
    parser.add_argument(
        "--max-len", type=int, metavar="N", help="tokens up to which to count (default: 4096, or the model's positions)"
    )


def from_args(args: argparse.Namespace) -> KV:
    """What the flags ask for."""
    return kv(args.model, max_len=args.max_len)


def layer_weights(model: ModelConfig) -> int:
    """Weights in the matrices of all layers, each of which every token is multiplied with."""
    attention = model.hidden_size * model.head_dim * 2 * (model.num_heads + model.num_kv_heads)
    return model.num_layers * (attention + 3 * model.hidden_size * model.intermediate_size)


def head_weights(model: ModelConfig) -> int:
    """Weights of the head, which a token is multiplied with whose next one is wanted."""
    return model.vocab_size * model.hidden_size


def token_bytes(model: ModelConfig, size: int) -> int:
    """That a token's keys and values take in the cache, in numbers of `size` bytes."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * size


def _points(model: ModelConfig, max_len: int, size: int) -> Iterator[Point]:
    # Of a token and one that it sees, in a layer: the score, and the weighted value.
    per_pair = 2 * 2 * model.num_heads * model.head_dim
    layers, head = 2 * layer_weights(model), 2 * head_weights(model)
    windows = model.layer_windows or (None,) * model.num_layers
    sequence = total_with = total_without = 0  # `sequence`: all its tokens in all layers
    for length in range(1, max_len + 1):
        token = layers + per_pair * sum(_seen(length, window) for window in windows)
        sequence += token
        total_with += token + head
        total_without += sequence + head
        cache_bytes = length * token_bytes(model, size)
        yield Point(length, token + head, sequence + head, total_with, total_without, cache_bytes)


def _seen(length: int, window: int | None) -> int:
    """Tokens that a sequence's last one sees, itself included."""
    return length if window is None else min(length, window)


def _operations(count: float) -> str:
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:,.0f} P"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"
