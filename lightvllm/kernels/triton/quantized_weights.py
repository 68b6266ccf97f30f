"""Quantized weights on a GPU: how they lie in memory, and how a tile of them becomes numbers that matrix units take.

Reference twins: lightvllm/kernels/reference.py:pack_quantized, pack_groups; test:
tests/kernels/gpu/test_triton_quantized.py.

A weight of 8 bits lies as signed bytes, what 128 was being zero. Of 4 bits a byte holds an input of the row's first
half in its lower bits, and the one as far into the second half in its higher: a tile of bytes is a tile of either half,
and no number has to change its place. (Halves of) rows are filled up to whole tiles of 128.

An integer of 4 bits becomes a float without a conversion, which GPUs do slowly: it is put into the lowest bits of the
mantissa of a power of two (Kim et al., 2022, https://arxiv.org/abs/2211.10017), of which it then is so much more.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

TILE = 128  # inputs, of which a row has a whole number


def pack_quantized(values: Tensor, bits: int) -> Tensor:
    """See `lightvllm.kernels.reference.pack_quantized`.

    values: [outputs, inputs] uint8 -> [outputs, inputs rounded up] int8, or of 4 bits [outputs, half of them] uint8
    """
    values = F.pad(values, (0, -values.shape[1] % (TILE * 8 // bits)))
    if bits == 8:
        return (values ^ 128).view(torch.int8)
    low, high = values.chunk(2, dim=1)
    return low | high << 4


def pack_groups(groups: Tensor) -> Tensor:
    """See `lightvllm.kernels.reference.pack_groups`; zero points, which are below 256, become bytes.

    groups: [outputs, groups] float32 or int32 -> [groups, outputs] float32 or uint8
    """
    return groups.T.to(torch.uint8 if groups.dtype == torch.int32 else torch.float32).contiguous()


def _halves_asm(power: int) -> str:
    """Of four bytes: the lower four bits of each, then the higher, added to the 16-bit float that `power` is."""
    magic = f"0x{power:04x}{power:04x}"
    return f"""{{
        .reg .b32 a, b;
        prmt.b32 a, $4, 0, 0x4140;
        prmt.b32 b, $4, 0, 0x4342;
        lop3.b32 $0, a, 0x000f000f, {magic}, 0xea;
        lop3.b32 $1, b, 0x000f000f, {magic}, 0xea;
        shr.u32 a, a, 4;
        shr.u32 b, b, 4;
        lop3.b32 $2, a, 0x000f000f, {magic}, 0xea;
        lop3.b32 $3, b, 0x000f000f, {magic}, 0xea;
    }}"""


# bfloat16 has seven bits for 128 + the lower seven of a byte; less 128, or 256 where the byte's highest bit is set.
_BYTES_TO_BFLOAT16 = tl.constexpr("""{
    .reg .b32 a, b, c, d;
    prmt.b32 a, $2, 0, 0x4140;
    prmt.b32 b, $2, 0, 0x4342;
    lop3.b32 c, a, 0x00800080, 0x43004300, 0xea;
    lop3.b32 d, b, 0x00800080, 0x43004300, 0xea;
    lop3.b32 a, a, 0x007f007f, 0x43004300, 0xea;
    lop3.b32 b, b, 0x007f007f, 0x43004300, 0xea;
    mov.b32 $0, 0xbf80bf80;
    fma.rn.bf16x2 $1, d, $0, b;
    fma.rn.bf16x2 $0, c, $0, a;
}""")
# float16 has ten, for 1024 + all eight.
_BYTES_TO_FLOAT16 = tl.constexpr("""{
    .reg .b32 a, b, one, less;
    prmt.b32 a, $2, 0, 0x4140;
    prmt.b32 b, $2, 0, 0x4342;
    lop3.b32 a, a, 0x00800080, 0x64006400, 0xbe;
    lop3.b32 b, b, 0x00800080, 0x64006400, 0xbe;
    mov.b32 one, 0x3c003c00;
    mov.b32 less, 0xe480e480;
    fma.rn.f16x2 $0, a, one, less;
    fma.rn.f16x2 $1, b, one, less;
}""")
_HALVES_TO_BFLOAT16 = tl.constexpr(_halves_asm(0x4300))
_HALVES_TO_FLOAT16 = tl.constexpr(_halves_asm(0x6400))


@triton.jit
def widen_bytes(packed, TYPE: tl.constexpr, EXCESS: tl.constexpr):
    """int8 -> the same as floats; EXCESS as for `widen_halves`"""
    if EXCESS == 0:
        return packed.to(TYPE)
    elif tl.bfloat16 == TYPE:
        return tl.inline_asm_elementwise(_BYTES_TO_BFLOAT16, "=&r,=&r,r", [packed], tl.bfloat16, is_pure=True, pack=4)
    else:
        return tl.inline_asm_elementwise(_BYTES_TO_FLOAT16, "=&r,=&r,r", [packed], tl.float16, is_pure=True, pack=4)


@triton.jit
def widen_halves(packed, TYPE: tl.constexpr, EXCESS: tl.constexpr):
    """uint8 -> its lower and its higher four bits as floats, and so much more: what `excess` says of the type, or 0."""
    if EXCESS == 0:
        return (packed & 15).to(TYPE), (packed >> 4).to(TYPE)
    elif tl.bfloat16 == TYPE:
        return tl.inline_asm_elementwise(
            _HALVES_TO_BFLOAT16, "=&r,=&r,=&r,=&r,r", [packed], (tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        return tl.inline_asm_elementwise(
            _HALVES_TO_FLOAT16, "=&r,=&r,=&r,=&r,r", [packed], (tl.float16, tl.float16), is_pure=True, pack=4
        )


def excess(dtype: torch.dtype) -> int:
    """The power of two from which a type's whole numbers are steps of its mantissa; 0 where they are converted."""
    return 0 if knobs.runtime.interpret else {torch.bfloat16: 128, torch.float16: 1024}.get(dtype, 0)
