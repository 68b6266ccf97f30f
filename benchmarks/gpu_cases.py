"""The kernels at the sizes of Qwen3-0.6B and 8B: who computes each, on what, and the least it must move or compute.

Every twin that `lightvllm.kernels.gpu` knows of is a case of its own; what is not there is `Missing`, with the reason.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from gpu_attention_cases import compiled, decode_attention, few_rows_attention, prefill_attention
from gpu_rates import Case, Inputs, Missing, find, random
from torch import Tensor

from lightvllm.bench.random_checkpoint import QWEN3, Shape
from lightvllm.kernels import gpu, reference

SHAPES = {name: QWEN3[name] for name in ("0.6B", "8B")}
TOKENS = (1, 64, 4096, 16384)
TARGET, LEAST_TOKENS = 0.85, 4096  # of the copy rate, where there is enough to copy
ROWS, FEW_ROWS = (1, 8, 16, 256, 4096), 8  # of products, and of those for few rows
VECTORS = (2**20, 2**21, 2**22, 2**24, 2**26)
LEAST_VECTOR = 2**22
EPS = 1e-6
SIZE = 2  # bytes of a bfloat16


def twins(op: str) -> dict[str, Callable | str]:
    """Who computes an op on a GPU: the reference, Triton, CUDA C++; why not, where one does not."""
    ways: dict[str, Callable | str] = {"reference": getattr(reference, op, f"{op} has no reference")}
    if op in gpu.TRITON_TWINS:
        module, function = gpu.TRITON_TWINS[op]
        ways["triton"] = find(f"lightvllm.kernels.triton.{module}", function)
    else:
        ways["triton"] = "not in TRITON_TWINS"
    if op not in gpu.CUDA_TWINS:
        ways["cuda"] = "not in CUDA_TWINS"
    elif not gpu.load_compiled():
        ways["cuda"] = "the compiled library is not there"
    else:
        ways["cuda"] = getattr(torch.ops.lightvllm_cuda, op).default
    return ways


def _op_cases(
    op: str, make_for: Callable[[Shape, int], tuple[Callable[[], Inputs], float]], sizes: tuple[int, ...] = TOKENS
) -> Iterator[Case | Missing]:
    """Cases of an op for both models and all sizes; `make_for` gives its inputs and the bytes it must move."""
    for way, call in twins(op).items():
        if isinstance(call, str):
            yield Missing(op, way, call)
            continue
        for name, shape in SHAPES.items():
            for tokens in sizes:
                make, num_bytes = make_for(shape, tokens)
                target = TARGET if tokens >= LEAST_TOKENS and way != "reference" else None
                expected = None if way == "reference" else getattr(reference, op)
                shape_name, changes = f"{name}, {tokens} tokens", op == "write_kv"
                yield Case(op, shape_name, way, call, make, num_bytes, 0, target, expected, changes_inputs=changes)


def vector_add() -> Iterator[Case | Missing]:
    """Two read, one written: what a kernel that does next to nothing reaches of the copy rate, by size."""
    for way, call in {"reference": torch.add, "cuda": compiled("vector_add")}.items():
        if isinstance(call, str):
            yield Missing("vector_add", way, call)
            continue
        for size in VECTORS:
            make = partial(lambda size: (random(size), random(size)), size)
            target = TARGET if way != "reference" and size >= LEAST_VECTOR else None
            expected = None if way == "reference" else torch.add
            yield Case("vector_add", f"{size} numbers", way, call, make, SIZE * 3 * size, 0, target, expected)


def rms_norm(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """x read, its norm written; the weight."""
    size = shape.hidden_size
    return lambda: (random(tokens, size), random(size), EPS), SIZE * (2 * tokens * size + size)


def add_rms_norm(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """Two read, their sum and its norm written; the weight."""
    size = shape.hidden_size
    make = lambda: (random(tokens, size), random(tokens, size), random(size), EPS)  # noqa: E731
    return make, SIZE * (4 * tokens * size + size)


def rotary_qkv(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """All heads read and written; cosines and sines in float32; two weights."""
    dim, heads = shape.head_dim, shape.heads + 2 * shape.kv_heads

    def make() -> Inputs:
        angles = random(tokens, 1, dim, dtype=torch.float32)
        weights = random(dim), random(dim)
        return random(tokens, heads * dim), *weights, EPS, angles.cos(), angles.sin(), shape.heads, shape.kv_heads

    return make, SIZE * (2 * tokens * heads * dim + 2 * dim) + 4 * 2 * tokens * dim


def silu_and_mul(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """Gate and up read, one written."""
    size = shape.intermediate_size
    return lambda: (random(tokens, 2 * size),), SIZE * 3 * tokens * size


def write_kv(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """Keys and values read and written, to slots in no order."""
    heads, dim, block = shape.kv_heads, shape.head_dim, 16
    num_blocks = 2 * tokens // block + 1

    def make() -> Inputs:
        caches = (random(num_blocks, block, heads, dim) for _ in range(2))
        slots = torch.randperm(num_blocks * block)[:tokens]
        return random(tokens, heads, dim), random(tokens, heads, dim), *caches, slots

    return make, SIZE * 4 * tokens * heads * dim + 8 * tokens


def embedding(shape: Shape, tokens: int) -> tuple[Callable[[], Inputs], float]:
    """A row of the table read for each token, and written."""

    @cache
    def table() -> Tensor:
        return random(shape.vocab_size, shape.hidden_size)

    def make() -> Inputs:
        return table(), torch.randint(shape.vocab_size, (tokens,))

    return make, SIZE * 2 * tokens * shape.hidden_size + 8 * tokens


def most_likely() -> Iterator[Case | Missing]:
    """Logits read."""
    vocab = SHAPES["8B"].vocab_size
    for way, call in twins("most_likely").items():
        if isinstance(call, str):
            yield Missing("most_likely", way, call)
            continue
        for rows in (1, 64, 256):
            make = partial(lambda rows: (random(rows, vocab),), rows)
            target = TARGET if rows == 256 and way != "reference" else None
            expected = None if way == "reference" else reference.most_likely
            yield Case("most_likely", f"{rows} x {vocab}", way, call, make, SIZE * rows * vocab, 0, target, expected)


def draw() -> Iterator[Case | Missing]:
    """Logits read; temperature, top-k and top-p for all rows. No target: some are read again."""
    vocab = SHAPES["8B"].vocab_size
    fast = find("lightvllm.kernels.triton.sampling", "draw")
    slow = find("lightvllm.worker.draw", "draw")
    for way, call in {"reference": slow, "triton": fast}.items():
        if isinstance(call, str):
            yield Missing("draw", way, call)
            continue
        for rows in (1, 64, 256):
            for top_k, top_p in ((vocab, 1.0), (50, 0.9)):
                make = partial(_draw_inputs, rows, vocab, top_k, top_p, way == "reference")
                shape = f"{rows} x {vocab}" + (f", top-k {top_k}, top-p {top_p}" if top_p < 1 else "")
                yield Case("draw", shape, way, call, make, SIZE * rows * vocab, in_graph=way != "reference")


def _draw_inputs(rows: int, vocab: int, top_k: int, top_p: float, on_host: bool) -> Inputs:
    """As `lightvllm.worker.draw.draw` takes them; all on the GPU where the call does not wait for it."""
    logits = random(rows, vocab, std=3.0)
    numbers = (
        torch.rand(rows, dtype=torch.float64),
        torch.full((rows,), 0.6),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p, dtype=torch.float64),
        torch.zeros(rows),
    )
    return logits.float() if on_host else logits, *(x.cpu().numpy() if on_host else x for x in numbers)


def products() -> Iterator[Case | Missing]:
    """The layers' products: a weight read for few rows, operations for many."""
    few_rows = twins("few_rows_linear")["cuda"]
    invariant = find("lightvllm.kernels.triton.invariant", "linear")
    quantized = twins("quantized_linear")["triton"]
    missing = {"few rows": few_rows, "invariant": invariant, "int8": quantized, "w4": quantized}
    yield from (Missing("products", way, call) for way, call in missing.items() if isinstance(call, str))
    for name, inputs, outputs in _weights():
        for rows in ROWS:
            shape = f"{name}, {rows} x {inputs} -> {outputs}"
            x = partial(random, rows, inputs)
            weight = partial(random, outputs, inputs, std=inputs**-0.5)
            activations, flops = SIZE * rows * (inputs + outputs), 2.0 * rows * inputs * outputs
            case = partial(Case, "products", shape, flops=flops)
            both = partial(lambda x, weight: (x(), weight()), x, weight)
            plain = partial(case, make=both, bytes=activations + SIZE * inputs * outputs)
            target = TARGET if rows == 1 and name.startswith("8B") else None
            yield plain("F.linear", F.linear, target=target)
            if not isinstance(few_rows, str) and rows <= FEW_ROWS:
                alone = partial(_without_neighbours, few_rows)
                yield plain("few rows", alone, target=target, expected=F.linear)
            if not isinstance(invariant, str):
                yield plain("invariant", lambda x, w, call=invariant: call(x, w, None), expected=F.linear)
            if not isinstance(quantized, str):
                for way, bits, group in (("int8", 8, inputs), ("w4", 4, 128)):
                    scales = 4 * outputs * (inputs // group)
                    yield case(
                        way,
                        quantized,
                        partial(_quantized_inputs, x, weight, bits, group),
                        bytes=activations + inputs * outputs * bits // 8 + scales,
                    )


def _without_neighbours(few_rows: Callable, x: Tensor, weight: Tensor) -> Tensor:
    """The product alone, without the norm before and the gate or sum behind that it can take in."""
    return few_rows(x, weight, None, None, EPS, None, False)


def _weights() -> Iterator[tuple[str, int, int]]:
    for name, shape in SHAPES.items():
        heads = shape.heads + 2 * shape.kv_heads
        yield f"{name} qkv", shape.hidden_size, heads * shape.head_dim
        yield f"{name} gate, up", shape.hidden_size, 2 * shape.intermediate_size
        yield f"{name} down", shape.intermediate_size, shape.hidden_size
        yield f"{name} head", shape.hidden_size, shape.vocab_size


def _quantized_inputs(x: Callable[[], Tensor], weight: Callable[[], Tensor], bits: int, group_size: int) -> Inputs:
    """As `quantized_linear` takes them, laid out by its twin on this GPU."""
    plain = weight()
    values, scales = reference.round_weight(plain, bits, group_size)
    packed = torch.ops.lightvllm.pack_quantized(values, bits)
    return x(), packed, torch.ops.lightvllm.pack_groups(scales), None, None, None, bits, group_size, len(plain)


KERNELS: dict[str, Callable[[], Iterator[Case | Missing]]] = {
    "vector_add": vector_add,
    "rms_norm": partial(_op_cases, "rms_norm", rms_norm),
    "add_rms_norm": partial(_op_cases, "add_rms_norm", add_rms_norm),
    "rotary_qkv": partial(_op_cases, "rotary_qkv", rotary_qkv),
    "silu_and_mul": partial(_op_cases, "silu_and_mul", silu_and_mul),
    "write_kv": partial(_op_cases, "write_kv", write_kv),
    "embedding": partial(_op_cases, "embedding", embedding),
    "most_likely": most_likely,
    "draw": draw,
    "decode_attention": decode_attention,
    "few_rows_attention": few_rows_attention,
    "prefill_attention": prefill_attention,
    "products": products,
}
