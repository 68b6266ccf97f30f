"""One decode step of a model's shape on a GPU, from kernels alone, against the time in which its weights can be read.

The step is captured in a CUDA graph: the embedding of a token for each request, all layers with attention to a cache of
`--context` tokens, and the logits. Weights and cache are random. Each variant adds one idea; the last table has the
kernels of each kind alone, one layer's after the other's, so that the L2 cache holds none of what they read.

    python benchmarks/gpu_decode_step.py [--shape qwen3-0.6b] [--rows 1] [--context 1024] [--json FILE]
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm.kernels import gpu

BLOCK_SIZE = 16
EPS = 1e-6
REPLAYS = 20  # in a row, for one time
TIMES = 7


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int


SHAPES = {
    "qwen3-0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151936),
    "qwen3-8b": Shape(4096, 36, 32, 8, 128, 12288, 151936),
}


@dataclass(frozen=True)
class Variant:
    """Which kernels a step is made of."""

    name: str
    few_rows: bool  # our products instead of F.linear
    around: bool  # norms, gates and residuals within the products
    attention: bool  # norm, rotation, cache and attention in one


VARIANTS = [
    Variant("F.linear, an op for each thing else", False, False, False),
    Variant("few_rows_linear, an op for each thing else", True, False, False),
    Variant("+ norm, gate and residual in the products", True, True, False),
    Variant("+ few_rows_attention", True, True, True),
]


def randn(*size: int, std: float = 1.0) -> Tensor:
    return torch.empty(*size, device="cuda", dtype=torch.bfloat16).normal_(0, std)


class Layer:
    """The weights and the cache of one layer."""

    def __init__(self, shape: Shape, rows: int, context: int) -> None:
        s, queries = shape, shape.heads * shape.head_dim
        self.qkv = randn(queries + 2 * s.kv_heads * s.head_dim, s.hidden, std=s.hidden**-0.5)
        self.o = randn(s.hidden, queries, std=queries**-0.5)
        self.gate_up = randn(2 * s.intermediate, s.hidden, std=s.hidden**-0.5)
        self.down = randn(s.hidden, s.intermediate, std=s.intermediate**-0.5)
        self.norms = [1 + randn(size, std=0.1) for size in (s.hidden, s.hidden, s.head_dim, s.head_dim)]
        self.caches = [randn(rows * context // BLOCK_SIZE, BLOCK_SIZE, s.kv_heads, s.head_dim) for _ in range(2)]

    def weights(self) -> list[Tensor]:
        return [self.qkv, self.o, self.gate_up, self.down]


class Step:
    """A step of one token for each of `rows` requests, the last of `context`."""

    def __init__(self, shape: Shape, rows: int, context: int) -> None:
        self.shape, self.rows, self.context = shape, rows, context
        self.layers = [Layer(shape, rows, context) for _ in range(shape.layers)]
        self.head, self.norm = (
            randn(shape.vocab, shape.hidden, std=shape.hidden**-0.5),
            1 + randn(shape.hidden, std=0.1),
        )
        self.tokens = torch.randint(shape.vocab, (rows,), device="cuda")
        angles = torch.full((rows, 1, shape.head_dim), context - 1.0, device="cuda")
        angles *= 1e6 ** (-torch.arange(shape.head_dim, device="cuda") % (shape.head_dim // 2) * 2 / shape.head_dim)
        self.cos, self.sin = angles.cos(), angles.sin()
        blocks = torch.arange(rows * context // BLOCK_SIZE, device="cuda", dtype=torch.int32)
        self.block_table = blocks.view(rows, -1)
        self.seq_lens = torch.full((rows,), context, device="cuda", dtype=torch.int32)
        self.slots = torch.arange(1, rows + 1, device="cuda") * context - 1

    def weight_bytes(self) -> int:
        weights = [weight for layer in self.layers for weight in layer.weights()]
        return sum(weight.nbytes for weight in [*weights, self.head])

    def run(self, variant: Variant) -> Tensor:
        """The logits, [rows, vocab]"""
        x, update = F.embedding(self.tokens, self.head), None
        if variant.around:
            for layer in self.layers:
                x = self.fused_layer(layer, x, variant)
            return self.product(self.head, x, self.norm)
        for layer in self.layers:
            x, update = self.plain_layer(layer, x, update, variant)
        linear = self.product if variant.few_rows else F.linear
        normed = torch.ops.lightvllm.add_rms_norm(x, update, self.norm, EPS)[1]
        return linear(self.head, normed) if variant.few_rows else F.linear(normed, self.head)

    @staticmethod
    def product(
        weight: Tensor, x: Tensor, norm: Tensor | None = None, residual: Tensor | None = None, is_gated: bool = False
    ) -> Tensor:
        return torch.ops.lightvllm_cuda.few_rows_linear(x, weight, None, norm, EPS, residual, is_gated)

    def fused_layer(self, layer: Layer, x: Tensor, variant: Variant) -> Tensor:
        qkv = self.product(layer.qkv, x, layer.norms[0])
        attended = self.fused_attention(layer, qkv) if variant.attention else self.plain_attention(layer, qkv)
        x = self.product(layer.o, attended, None, x)
        return self.product(layer.down, self.product(layer.gate_up, x, layer.norms[1], None, True), None, x)

    def plain_layer(self, layer: Layer, x: Tensor, update: Tensor | None, variant: Variant) -> tuple[Tensor, Tensor]:
        def linear(weight: Tensor, x: Tensor) -> Tensor:
            return self.product(weight, x) if variant.few_rows else F.linear(x, weight)

        def add(x: Tensor, update: Tensor | None, norm: Tensor) -> tuple[Tensor, Tensor]:
            if update is None:
                return x, torch.ops.lightvllm.rms_norm(x, norm, EPS)
            return torch.ops.lightvllm.add_rms_norm(x, update, norm, EPS)

        x, normed = add(x, update, layer.norms[0])
        attended = self.plain_attention(layer, linear(layer.qkv, normed))
        x, normed = add(x, linear(layer.o, attended), layer.norms[1])
        return x, linear(layer.down, torch.ops.lightvllm.silu_and_mul(linear(layer.gate_up, normed)))

    def fused_attention(self, layer: Layer, qkv: Tensor) -> Tensor:
        s = self.shape
        return torch.ops.lightvllm_cuda.few_rows_attention(
            qkv, *layer.norms[2:], EPS, self.cos, self.sin, *layer.caches, self.slots, self.block_table,
            self.seq_lens, s.heads, s.kv_heads, s.head_dim**-0.5, 0
        )  # fmt: skip

    def plain_attention(self, layer: Layer, qkv: Tensor) -> Tensor:
        """PyTorch's attention stands in for a paged one: the blocks lie in order."""
        s = self.shape
        heads = torch.ops.lightvllm.rotary_qkv(
            qkv, *layer.norms[2:], EPS, self.cos, self.sin, s.heads, s.kv_heads
        )  # fmt: skip
        query, key, value = heads.split([s.heads, s.kv_heads, s.kv_heads], dim=1)
        torch.ops.lightvllm.write_kv(key, value, *layer.caches, self.slots)
        keys, values = (
            cache.view(self.rows, self.context, s.kv_heads, s.head_dim).transpose(1, 2) for cache in layer.caches
        )
        attended = F.scaled_dot_product_attention(query.unsqueeze(2), keys, values, enable_gqa=True)
        return attended.flatten(1)


def microseconds(run: Callable[[], object]) -> float:
    """Of one replay of it as a graph; the median of several times."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()
    times = []
    for _ in range(TIMES + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / REPLAYS * 1000)
    del result
    return statistics.median(times[1:])


def copy_rate() -> float:
    """Bytes read and written in a second by a copy on the device; by a kernel, as a graph's own copies are slower."""
    source = torch.empty(2**30, device="cuda", dtype=torch.int16).random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(lambda: torch.bitwise_not(source, out=target)) * 1e6


def kinds_of(step: Step) -> dict[str, tuple[Callable[[], object], int]]:
    """Each kind of kernel in the last variant, all layers' in a row, and the bytes of weights and cache it reads."""
    s, layers = step.shape, step.layers
    x = randn(step.rows, s.hidden)
    wide, qkv = randn(step.rows, s.intermediate), randn(step.rows, len(layers[0].qkv))
    queries = randn(step.rows, s.heads * s.head_dim)
    return {
        "qkv": (lambda: [step.product(a.qkv, x, a.norms[0]) for a in layers], layers[0].qkv.nbytes),
        "attention": (lambda: [step.fused_attention(a, qkv) for a in layers], 2 * layers[0].caches[0].nbytes),
        "o": (lambda: [step.product(a.o, queries, None, x) for a in layers], layers[0].o.nbytes),
        "gate_up": (
            lambda: [step.product(a.gate_up, x, a.norms[1], None, True) for a in layers],
            layers[0].gate_up.nbytes,
        ),
        "down": (lambda: [step.product(a.down, wide, None, x) for a in layers], layers[0].down.nbytes),
        "head": (lambda: [step.product(step.head, x, step.norm) for _ in layers], step.head.nbytes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu.enable()
    with torch.inference_mode():
        rate = copy_rate()
        step = Step(SHAPES[options.shape], options.rows, options.context)
        limit = step.weight_bytes() / rate * 1e6
        print(
            f"{options.shape}, {options.rows} rows, context {options.context}: copy rate {rate / 1e12:.2f} TB/s,",
            end=" ",
        )
        print(f"{step.weight_bytes() / 1e9:.2f} GB of weights: {limit:.0f} us")
        times = {}
        for variant in VARIANTS:
            times[variant.name] = microseconds(lambda variant=variant: step.run(variant))
            print(f"{variant.name:45} {times[variant.name]:8.1f} us {limit / times[variant.name]:7.1%}")
        for name, (run, num_bytes) in kinds_of(step).items():
            each = microseconds(run) / step.shape.layers
            print(f"  {name:10} alone {each:8.2f} us {num_bytes / rate / each * 1e6:7.1%} of the copy rate")
    if options.json:
        result = {"shape": asdict(step.shape), "rows": options.rows, "copy_rate": rate, "limit": limit, "times": times}
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
