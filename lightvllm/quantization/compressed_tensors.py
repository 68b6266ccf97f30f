"""compressed-tensors checkpoints (https://github.com/vllm-project/compressed-tensors), as llm-compressor writes them.

The configuration has groups of layers, each with a scheme and the layers it is for: by name, by a regular expression
after "re:", or by class, which here is always "Linear". `ignore` takes layers out. Tensors: `compressed_weights.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightvllm.quantization.compressed_weights import FloatWeight, IntegerWeight, PackedWeight, Scheme
from lightvllm.quantization.config import field, fits, unsupported
from lightvllm.quantization.format import Shape, StoredTensor, StoredWeight, inputs_per_group

Weight = type[PackedWeight | IntegerWeight | FloatWeight]

_WEIGHTS: dict[str, Weight] = {
    "pack-quantized": PackedWeight,
    "int-quantized": IntegerWeight,
    "float-quantized": FloatWeight,
}


@dataclass(frozen=True)
class Group:
    """Layers of one scheme; None for plain ones.

    Attributes:
        at: its path in quantization_config, with a dot at its end.
        weight: what reads a layer's tensors.
        group_size: as configured, for the strategy "group".
        block: outputs and inputs that share a scale, for the strategy "block".
    """

    at: str
    targets: list[str]
    weight: Weight
    scheme: Scheme
    group_size: Any
    block: tuple[int, int]

    def stored(self, layer: str, shape: Shape) -> StoredWeight:
        """The weight of the layer of this name and shape."""
        inputs = shape[1]
        if self.scheme.strategy == "group":
            block = (1, inputs_per_group(self.group_size, inputs, f"{self.at}weights.group_size"))
        else:
            block = {"tensor": shape, "channel": (1, inputs), "block": self.block}[self.scheme.strategy]
        return self.weight(layer, shape, self.scheme, block)


class CompressedTensors:
    """See `lightvllm.quantization.format.Format`."""

    def __init__(self, config: dict[str, Any]) -> None:
        for name in ("kv_cache_scheme", "transform_config"):
            if config.get(name):
                raise unsupported(name, config[name], None)
        field(config.get("sparsity_config") or {}, "format", ("dense",), "dense", "sparsity_config.")
        groups = config.get("config_groups")
        if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
            raise unsupported("config_groups", groups, "an object of groups, each with targets and weights")
        self.ignore: list[str] = config.get("ignore") or []
        self.groups = [
            read_group(group, f"config_groups.{name}.", config.get("format"))
            for name, group in groups.items()
            if any(group.get(part) is not None for part in ("weights", "input_activations", "output_activations"))
        ]

    def weight(self, layer: str, shape: Shape, stored: Mapping[str, StoredTensor]) -> StoredWeight | None:
        """See `Format.weight`."""
        if _closeness(layer, self.ignore, "ignore"):
            return None
        close = [_closeness(layer, group.targets, f"{group.at}targets") for group in self.groups]
        if not any(close):
            return None
        return self.groups[close.index(max(close))].stored(layer, shape)


def _closeness(layer: str, targets: list[str], at: str) -> int:
    """How closely targets fit: a name (3) more than an expression (2), and that more than the class (1); 0: none does.

    Args:
        at: where in quantization_config they are.
    """
    if layer in targets:
        return 3
    if any(target.startswith("re:") and fits(target.removeprefix("re:"), layer, at) for target in targets):
        return 2
    return int("Linear" in targets)


def read_group(group: dict[str, Any], at: str, default_format: str | None) -> Group:
    """One of the `config_groups`.

    Args:
        at: its path in quantization_config, with a dot at its end.
        default_format: the format of a group that names none.

    Raises:
        ValueError: a field with a value that we cannot honour.
    """
    weights, inputs = group.get("weights"), group.get("input_activations")
    if not isinstance(weights, dict):
        raise unsupported(f"{at}weights", weights, "an object")
    format = field(group, "format", (*_WEIGHTS, "naive-quantized"), default_format, at)
    if group.get("output_activations") is not None:
        raise unsupported(f"{at}output_activations", group["output_activations"], None)
    if inputs is not None:
        field(inputs, "num_bits", (8,), 8, f"{at}input_activations.")
    scheme, group_size, block = _read_weights(weights, format, f"{at}weights.")
    if format == "naive-quantized":
        format = "float-quantized" if weights.get("type") == "float" else "int-quantized"
    return Group(at, group.get("targets") or [], _WEIGHTS[format], scheme, group_size, block)


def _read_weights(weights: dict[str, Any], format: str, at: str) -> tuple[Scheme, Any, tuple[int, int]]:
    """A group's scheme, the size of its groups and of its blocks."""
    field(weights, "dynamic", (False,), False, at)
    is_float = field(weights, "type", ("int", "float"), "int", at) == "float"
    if format != "naive-quantized" and is_float != (format == "float-quantized"):
        raise unsupported(f"{at}type", weights.get("type"), f"the type of {format}")
    bits = field(weights, "num_bits", (8,) if is_float else (4, 8), 8, at)
    is_symmetric = field(weights, "symmetric", (True,) if is_float else (True, False), True, at)
    group_size = weights.get("group_size")
    usual = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    strategies = ("tensor", "channel", *(("block",) if is_float else ("group",)))
    strategy = field(weights, "strategy", strategies, usual, at)
    order = field(weights, "actorder", ("group", "weight", "dynamic", "static", True, False), False, at)
    block = weights.get("block_structure") if strategy == "block" else [1, 1]
    if not (isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)):
        raise unsupported(f"{at}block_structure", block, "outputs and inputs of a block, [128, 128] say")
    scheme = Scheme(bits, strategy, is_symmetric, order in ("group", "dynamic", True))
    return scheme, group_size, (block[0], block[1])
