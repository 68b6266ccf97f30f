"""GPTQ checkpoints (Frantar et al., 2022, https://arxiv.org/abs/2210.17323) as AutoGPTQ and GPTQModel write them.

With n = 32 / bits integers in a word, those in the lowest bits first, a linear layer has

    qweight: [inputs / n, outputs] int32, packed along the inputs
    qzeros: [groups, outputs / n] int32, packed along the outputs
    scales: [groups, outputs]
    g_idx: [inputs] int32, each input's group, which is not its place where `desc_act` was on

and means scales * (qweight - qzeros). In the format's first version the zeros were written less one (GPTQModel,
`convert_gptq_v2_to_v1_format_module`): a subtraction from whole words, undone here in the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightvllm.quantization.bit_packing import unpack_words
from lightvllm.quantization.config import field, fits, unsupported
from lightvllm.quantization.format import Expected, Shape, StoredTensor, inputs_per_group
from lightvllm.quantization.weight import QuantizedWeight, order_of_groups

# One in each of a word's integers, as a signed word.
_ONES = {4: 0x11111111, 8: 0x01010101}


class GPTQ:
    """See `lightvllm.quantization.format.Format`.

    A layer that has a plain `weight` is not quantized; `lm_head` and the lists of what is say no more than that.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        version = "format" if config.get("format") is not None else "checkpoint_format"
        self.stores_less_one = field(config, version, ("gptq", "gptq_v2"), "gptq") == "gptq"
        field(config, "pack_dtype", ("int32",), "int32")
        field(config, "is_marlin_format", (False,), False)
        self.config = config
        self.overrides: dict[str, dict[str, Any]] = config.get("dynamic") or {}
        if not isinstance(self.overrides, dict):
            raise unsupported("dynamic", self.overrides, "an object of expressions and what is different there")

    def weight(self, layer: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> "GPTQWeight | None":
        """See `Format.weight`."""
        if f"{layer}.weight" in stored:
            return None
        config, at = self.config, ""
        for pattern, override in self.overrides.items():  # the first that fits counts; "-:" leaves layers as they are
            if not pattern.startswith("-:") and fits(pattern.removeprefix("+:"), layer, "dynamic"):
                config, at = config | override, f"dynamic.{pattern}."
                break
        bits = field(config, "bits", (4, 8), at=at)
        group_size = inputs_per_group(config.get("group_size"), shape[1], f"{at}group_size")
        ordered = field(config, "desc_act", (True, False), False, at)
        return GPTQWeight(layer, shape, bits, group_size, ordered, self.stores_less_one)


@dataclass(frozen=True)
class GPTQWeight:
    """See `lightvllm.quantization.format.StoredWeight`."""

    layer: str
    shape: Shape
    bits: int
    group_size: int
    is_ordered: bool
    stores_less_one: bool

    def tensors(self) -> dict[str, Expected]:
        """See `StoredWeight.tensors`."""
        outputs, inputs = self.shape
        groups, per_word = -(-inputs // self.group_size), 32 // self.bits
        return {
            "qweight": Expected(((-(-inputs // per_word), outputs),), ("I32",)),
            "qzeros": Expected(((groups, -(-outputs // per_word)),), ("I32",)),
            "scales": Expected(((groups, outputs),)),
            "g_idx": Expected(((inputs,),), ("I32", "I64"), is_optional=not self.is_ordered),
        }

    def read(self, tensors: dict[str, Tensor]) -> QuantizedWeight:
        """See `StoredWeight.read`."""
        outputs, inputs = self.shape
        values = unpack_words(tensors["qweight"].T, self.bits)[:, :inputs]
        words = tensors["qzeros"]
        if self.stores_less_one:
            words = words + _ONES[self.bits]
        zeros = unpack_words(words, self.bits)[:, :outputs].T.int()
        order = None
        if "g_idx" in tensors:
            order = order_of_groups(tensors["g_idx"], self.group_size, f"{self.layer}.g_idx")
        if order is not None:
            values = values[:, order]
        scales = tensors["scales"].T.float().contiguous()
        return QuantizedWeight(values.contiguous(), scales, zeros.contiguous(), self.bits, self.group_size, order)
