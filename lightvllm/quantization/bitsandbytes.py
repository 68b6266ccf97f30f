"""bitsandbytes checkpoints of 4 bits: NF4 (Dettmers et al., 2023, https://arxiv.org/abs/2305.14314) and FP4.

A weight is taken as one row, [outputs * inputs]; each element is the index of one of 16 numbers between -1 and 1, and
each block of them (64, say) has a factor. A linear layer has (bitsandbytes/functional.py, `QuantState.as_dict`)

    weight: [outputs * inputs / 2, 1] uint8, the first of two indices in the higher bits
    weight.quant_map: [16], the numbers
    weight.absmax: [blocks], the factors; nested, uint8 indices into weight.nested_quant_map, [256], with factors of
        their own in weight.nested_absmax, one for each `nested_blocksize`, and all moved by `nested_offset`
    weight.quant_state.bitsandbytes__nf4 or __fp4: a JSON object with the sizes, as bytes

The 16 numbers are rounded to 8 bits, as the kernels multiply integers, each by at most 1/254.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightvllm.quantization.config import field
from lightvllm.quantization.format import FLOATS, Expected, Shape, StoredTensor
from lightvllm.quantization.weight import QuantizedWeight


class BitsAndBytes:
    """See `lightvllm.quantization.format.Format`.

    A layer whose `weight` is of a floating-point type is not quantized; `llm_int8_skip_modules` says no more than that.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        field(config, "load_in_8bit", (False,), False)
        field(config, "load_in_4bit", (True,))
        field(config, "bnb_4bit_quant_storage", ("uint8",), "uint8")
        self.kind = field(config, "bnb_4bit_quant_type", ("nf4", "fp4"), "fp4")

    def weight(self, layer: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> "BlockwiseWeight | None":
        """See `Format.weight`."""
        weight = stored.get(f"{layer}.weight")
        if weight is not None and weight.get_dtype() in FLOATS:
            return None
        name = f"{layer}.weight.quant_state.bitsandbytes__{self.kind}"
        state = _read_state(stored[name], name) if name in stored else {}
        return BlockwiseWeight.of(layer, shape, self.kind, state)


def _read_state(tensor: StoredTensor, name: str) -> dict[str, Any]:
    try:
        state = json.loads(bytes(tensor[...].tolist()))
    except (TypeError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise ValueError(f"model: {name} is no JSON object")
    return state


@dataclass(frozen=True)
class BlockwiseWeight:
    """See `lightvllm.quantization.format.StoredWeight`.

    Attributes:
        block_size: neighbouring numbers of the weight that share a factor.
        nested_block_size: neighbouring factors that share one; 0 where they are not nested.
        offset: what nested factors are moved by.
    """

    shape: Shape
    kind: str
    block_size: int
    nested_block_size: int
    offset: float

    @classmethod
    def of(cls, layer: str, shape: Shape, kind: str, state: dict[str, Any]) -> "BlockwiseWeight":
        """The weight with this `quant_state`.

        Raises:
            ValueError: the state is of another weight, or the weight's rows are not made of whole blocks.
        """
        if state.get("shape", list(shape)) != list(shape):
            raise ValueError(
                f"model: {layer}.weight.quant_state has the shape {state['shape']}, expected {list(shape)}"
            )
        block_size, nested = state.get("blocksize", 64), state.get("nested_blocksize", 0)
        if not isinstance(block_size, int) or block_size < 8 or block_size % 8 or not isinstance(nested, int):
            raise ValueError(f"model: {layer}.weight.quant_state has the blocksize {block_size!r} ({nested!r} nested)")
        if shape[1] % block_size:
            raise ValueError(f"model: {layer} has {shape[1]} inputs, expected a multiple of the blocksize {block_size}")
        return cls(shape, kind, block_size, nested, state.get("nested_offset", 0.0))

    def tensors(self) -> dict[str, Expected]:
        """See `StoredWeight.tensors`."""
        count = self.shape[0] * self.shape[1]
        blocks = count // self.block_size
        found = {
            "weight": Expected(((count // 2, 1),), ("U8",)),
            "weight.absmax": Expected(((blocks,),), ("U8",) if self.nested_block_size else FLOATS),
            "weight.quant_map": Expected(((16,),)),
            f"weight.quant_state.bitsandbytes__{self.kind}": Expected(None, ("U8",)),
        }
        if self.nested_block_size:
            found["weight.nested_absmax"] = Expected(((-(-blocks // self.nested_block_size),),))
            found["weight.nested_quant_map"] = Expected(((256,),))
        return found

    def read(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        """See `StoredWeight.read`."""
        pairs = tensors["weight"].view(-1)
        values = torch.stack((pairs >> 4, pairs & 15), dim=1).view(self.shape)
        factors = tensors["weight.absmax"]
        if self.nested_block_size:
            nested = tensors["weight.nested_absmax"].float().repeat_interleave(self.nested_block_size)[: len(factors)]
            factors = tensors["weight.nested_quant_map"].float()[factors.long()] * nested + self.offset
        codebook = (tensors["weight.quant_map"].float() * 127).round() + 128
        scales = factors.float().view(self.shape[0], -1) / 127
        return QuantizedWeight(values, scales, None, 4, self.block_size, codebook=codebook.to(torch.uint8))
