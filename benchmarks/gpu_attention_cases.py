"""Attention at the sizes of Qwen3-8B (32 heads over 8 of the cache) and 0.6B (16 over 8), and how its cost grows.

The paged cache is large and its blocks are handed out in no order. PyTorch's own attention, beside it, has keys and
values that lie in a row for it.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
import torch.nn.functional as F
from gpu_rates import Case, Inputs, Missing, find, random
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightvllm.kernels import gpu, reference

HEADS, SMALL_HEADS, KV_HEADS, DIM, BLOCK = 32, 16, 8, 128, 16
SCALE = DIM**-0.5
NUM_BLOCKS = 64 * 32_768 // BLOCK
DECODES = [(1, 4096), (4, 4096), (16, 4096), (256, 4096), (64, 512), (64, 2048), (64, 8192), (64, 32_768)]
DENSE_DECODES = [(64, 4096), (1, 4096), (256, 4096)]
FEW_DECODES = [(1, 1024), (1, 4096), (8, 1024), (8, 4096)]
PREFILLS = (1024, 2048, 4096, 16_384, 32_768)
DECODE, PREFILL = (64, 4096), 8192  # with a target
DECODE_TARGET, PREFILL_TARGET = 0.85, 0.60  # of the copy rate, and of the rate of bfloat16 products
SIZE = 2  # bytes of a bfloat16


@cache
def kv_cache(is_int8: bool) -> tuple[Tensor, Tensor]:
    """Keys and values, each [NUM_BLOCKS, BLOCK, KV_HEADS, DIM], in int8 four bytes more; made once."""
    plain = [random(NUM_BLOCKS, BLOCK, KV_HEADS, DIM) for _ in range(2)]
    if is_int8:
        return tuple(torch.cat([reference.round_heads(part) for part in half.split(4096)]) for half in plain)  # type: ignore[return-value]
    return tuple(plain)  # type: ignore[return-value]


def block_table(requests: int, seq_len: int) -> Tensor:
    """[requests, blocks] int32, no block twice."""
    blocks = -(-seq_len // BLOCK)
    return torch.randperm(NUM_BLOCKS)[: requests * blocks].view(requests, blocks).int()


def decode_bytes(requests: int, seq_len: int, heads: int, is_int8: bool = False) -> int:
    """Keys and values read, queries read, outputs written."""
    head_bytes = DIM + reference.SCALE_BYTES if is_int8 else SIZE * DIM
    return 2 * requests * seq_len * KV_HEADS * head_bytes + 2 * requests * heads * DIM * SIZE


def prefill_flops(new: int, before: int, heads: int) -> float:
    """Two products of each query with the keys before it and its own, an addition and a multiplication two."""
    return 4.0 * heads * DIM * (new * before + new * (new + 1) / 2)


def decode_attention() -> Iterator[Case | Missing]:
    """One token of each request: keys and values read once."""
    ways = {
        "triton": find("lightvllm.kernels.triton.paged_decode", "paged_decode"),
        "cuda v1": _first_version(),
        "cuda v2": compiled("paged_attention_v2"),
    }
    for way, call in ways.items():
        if isinstance(call, str):
            yield Missing("decode_attention", way, call)
            continue
        for requests, seq_len in (DECODE, *DECODES):
            yield _decode(way, call, requests, seq_len)
        yield _decode(way, call, *DECODE, heads=SMALL_HEADS)
        yield _decode(way, call, *DECODE, is_int8=True)
    for requests, seq_len in DENSE_DECODES:
        make = partial(_dense_inputs, requests, 1, seq_len, HEADS)
        dense = partial(_dense, SDPBackend.FLASH_ATTENTION, False)
        num_bytes = decode_bytes(requests, seq_len, HEADS)
        shape = f"{requests} x {seq_len}, {HEADS} heads"
        yield Case("decode_attention", shape, "torch flash", dense, make, num_bytes)


def compiled(op: str) -> Callable | str:
    """An op of the compiled library, or why it is not there."""
    if not gpu.load_compiled():
        return "the compiled library is not there"
    return getattr(torch.ops.lightvllm_cuda, op, f"the compiled library has no {op}")


def _first_version() -> Callable | str:
    """The compiled library's attention without splits, called as the others are for decodes."""
    op = compiled("paged_attention_v1")
    if isinstance(op, str):
        return op
    return lambda query, keys, values, table, lengths, _, *rest: op(query, keys, values, table, None, lengths, *rest)


def _decode(way: str, call: Callable, requests: int, seq_len: int, heads: int = HEADS, is_int8: bool = False) -> Case:
    def make() -> Inputs:
        table = block_table(requests, seq_len)
        lengths = torch.full((requests,), seq_len, dtype=torch.int32)
        # Zeros that the engine makes once for all layers.
        arrivals = (torch.zeros(requests, KV_HEADS, dtype=torch.int32),) if way == "triton" else ()
        return random(requests, heads, DIM), *kv_cache(is_int8), table, lengths, seq_len, SCALE, 0, *arrivals

    def expected(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, *_: object) -> Tensor:
        ones = torch.ones(requests, dtype=torch.int64)
        return reference.paged_attention(query, keys, values, table, ones, lengths.cpu().long(), SCALE, 0)

    shape = f"{requests} x {seq_len}, {heads} heads" + (", int8" if is_int8 else "")
    num_bytes = decode_bytes(requests, seq_len, heads, is_int8)
    is_aim = (requests, seq_len) == DECODE and heads == HEADS and not is_int8 and way != "cuda v1"
    target = DECODE_TARGET if is_aim else None
    return Case("decode_attention", shape, way, call, make, num_bytes, 0, target, expected)


def few_rows_attention() -> Iterator[Case | Missing]:
    """Of a few requests' products: norms, rotation, write to the cache and attention in one."""
    call = compiled("few_rows_attention")
    if isinstance(call, str):
        yield Missing("few_rows_attention", "cuda", call)
        return
    for requests, seq_len in FEW_DECODES:
        for heads in (SMALL_HEADS, HEADS):
            make = partial(_few_rows_inputs, requests, seq_len, heads)
            num_bytes = decode_bytes(requests, seq_len, heads)
            shape, expected = f"{requests} x {seq_len}, {heads} heads", reference.few_rows_attention
            yield Case("few_rows_attention", shape, "cuda", call, make, num_bytes, expected=expected)


def _few_rows_inputs(requests: int, seq_len: int, heads: int) -> Inputs:
    table = block_table(requests, seq_len)
    lengths = torch.full((requests,), seq_len, dtype=torch.int32)
    slots = table[:, -1].long() * BLOCK + (seq_len - 1) % BLOCK
    angles = random(requests, 1, DIM, dtype=torch.float32)
    weights = random(DIM), random(DIM)
    qkv = random(requests, (heads + 2 * KV_HEADS) * DIM)
    where = *kv_cache(False), slots, table, lengths
    return qkv, *weights, 1e-6, angles.cos(), angles.sin(), *where, heads, KV_HEADS, SCALE, 0


def prefill_attention() -> Iterator[Case | Missing]:
    """Causal attention of a whole prompt, and of a part of one behind what the cache has of it."""
    call = find("lightvllm.kernels.triton.paged_prefill", "paged_prefill")
    if isinstance(call, str):
        yield Missing("prefill_attention", "triton", call)
    else:
        for new in (PREFILL, *PREFILLS):
            yield _prefill("triton", call, new)
        yield _prefill("triton", call, PREFILL, heads=SMALL_HEADS)
        yield _prefill("triton", call, 2048, before=6144)
    for backend, name in ((SDPBackend.FLASH_ATTENTION, "torch flash"), (SDPBackend.CUDNN_ATTENTION, "torch cuDNN")):
        for new, heads in ((PREFILL, HEADS), (PREFILL, SMALL_HEADS), *((new, HEADS) for new in PREFILLS)):
            make = partial(_dense_inputs, 1, new, new, heads)
            shape, flops = _prefill_shape(new, 0, heads), prefill_flops(new, 0, heads)
            num_bytes = 2 * SIZE * DIM * new * (heads + KV_HEADS)
            yield Case("prefill_attention", shape, name, partial(_dense, backend, True), make, num_bytes, flops)


def _prefill(way: str, call: Callable, new: int, before: int = 0, heads: int = HEADS) -> Case:
    length = before + new

    def make() -> Inputs:
        starts, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0, new], [length]))
        return random(new, heads, DIM), *kv_cache(False), block_table(1, length), starts, lengths, new, SCALE, 0

    def expected(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, *_: object) -> Tensor:
        if before:
            lens = torch.tensor([new]), torch.tensor([length])
            return reference.paged_attention(query, keys, values, table, *lens, SCALE, 0)
        dense = (x[table[0].long()].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0) for x in (keys, values))
        return _dense(SDPBackend.FLASH_ATTENTION, True, query.transpose(0, 1).unsqueeze(0), *dense)[0].transpose(0, 1)

    num_bytes = 2 * SIZE * DIM * (new * heads + length * KV_HEADS)
    is_aim = new == PREFILL and heads == HEADS
    target = PREFILL_TARGET if is_aim else None
    shape, flops = _prefill_shape(new, before, heads), prefill_flops(new, before, heads)
    return Case("prefill_attention", shape, way, call, make, num_bytes, flops, target, expected)


def _prefill_shape(new: int, before: int, heads: int) -> str:
    return f"{new}" + (f" behind {before}" if before else "") + f", {heads} heads"


def _dense_inputs(requests: int, new: int, seq_len: int, heads: int) -> Inputs:
    sizes = (heads, new), (KV_HEADS, seq_len), (KV_HEADS, seq_len)
    return tuple(random(requests, *size, DIM) for size in sizes)


def _dense(backend: SDPBackend, is_causal: bool, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=True)
