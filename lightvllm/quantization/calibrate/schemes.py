"""The schemes of `lightvllm quantize`, and what each writes into config.json. Imports no torch.

The fields are those of compressed-tensors (its quantization/quant_args.py, quant_scheme.py and quant_config.py).
"""

from dataclasses import dataclass
from typing import Any

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Scheme:
    """How the weights of a checkpoint are rounded.

    Attributes:
        bits: of a weight.
        is_grouped: whether each group of neighbouring inputs has a scale of its own; else each output has one.
        rounds_inputs: whether the engine that runs the folder rounds a layer's inputs to 8 bits, each token by its own
            scale. The layer's product is one of integers then.
        migrates: whether each input's scale is moved between a layer and what comes before it (`migrate`).
        compensates: whether what a weight loses by rounding is made up for by those behind it (`gptq`).
        summary: for the help text.
    """

    bits: int
    is_grouped: bool
    rounds_inputs: bool
    migrates: bool
    compensates: bool
    summary: str

    @property
    def fits_scales(self) -> bool:
        """Whether scales are chosen by what is lost: where few values make the largest weight dear, and data tells."""
        return self.bits == 4 and self.needs_data

    @property
    def needs_data(self) -> bool:
        """Whether it looks at what the layers are given."""
        return self.migrates or self.compensates

    def quantization_config(self, group_size: int) -> dict[str, Any]:
        """The value of `quantization_config` in config.json."""
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group" if self.is_grouped else "channel",
            "group_size": group_size if self.is_grouped else None,
            "dynamic": False,
        }
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        layers = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs if self.rounds_inputs else None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": "int-quantized" if self.rounds_inputs else "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": layers},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
        }


SCHEMES = {
    "int8-absmax": Scheme(8, False, True, False, False, "8 bits, rounded to the nearest; inputs too, while running"),
    "w8a8": Scheme(8, False, True, True, False, "the same, and large inputs are made smaller first (SmoothQuant)"),
    "w4-rtn": Scheme(4, True, False, False, False, "4 bits, rounded to the nearest"),
    "w4-gptq": Scheme(4, True, False, False, True, "4 bits, rounding errors made up for by other weights (GPTQ)"),
    "w4-awq": Scheme(4, True, False, True, False, "4 bits, the weights of large inputs kept best (AWQ)"),
}


def find_scheme(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SCHEMES:
        raise ValueError(f"scheme: {name!r} is unknown, expected one of {', '.join(SCHEMES)}")
    return SCHEMES[name]
