"""What config.json says of a checkpoint's quantization, and which format reads it: one line a format. No torch."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightvllm.quantization.format import Format

# config.json's `quant_method` -> where the class is that reads such checkpoints.
FORMATS = {
    "gptq": ("lightvllm.quantization.gptq", "GPTQ"),
    "awq": ("lightvllm.quantization.awq", "AWQ"),
    "compressed-tensors": ("lightvllm.quantization.compressed_tensors", "CompressedTensors"),
    "bitsandbytes": ("lightvllm.quantization.bitsandbytes", "BitsAndBytes"),
}


def quantization_config(hf: Mapping[str, Any]) -> dict[str, Any] | None:
    """The quantization of the checkpoint with this config.json, None where there is none.

    Raises:
        ValueError: a method that we cannot read.
    """
    config = hf.get("quantization_config")
    if not config and hf.get("compression_config"):  # what compressed-tensors wrote at first
        config = {"quant_method": "compressed-tensors", **hf["compression_config"]}
    if not config:
        return None
    if not isinstance(config, dict):
        raise ValueError(f"config.json: quantization_config is {config!r:.80}, expected an object")
    field(config, "quant_method", tuple(FORMATS))
    return config


def checkpoint_format(config: dict[str, Any]) -> "Format":
    """The reader of a checkpoint with this `quantization_config`.

    Raises:
        ValueError: a field with a value that we cannot honour.
    """
    module, name = FORMATS[config["quant_method"]]
    return getattr(import_module(module), name)(config)


def check_quantization(asked: str | None, config: dict[str, Any] | None) -> None:
    """Hold `EngineConfig.quantization` against what the checkpoint is.

    Raises:
        ValueError: it names another format than the checkpoint's, or would round weights that are rounded already.
    """
    found = config["quant_method"] if config is not None else None
    if asked is None or asked == found:
        return
    if asked in FORMATS:
        says = f"says {found!r}" if found is not None else "has no quantization_config"
        raise ValueError(f"quantization: {asked!r} is not what the checkpoint is: its config.json {says}; leave it out")
    if found is not None:
        raise ValueError(
            f"quantization: {asked!r} rounds the weights of a full-precision checkpoint, but by its config.json this "
            f"one is quantized already ({found}); leave it out"
        )


def field(config: Mapping[str, Any], name: str, choices: tuple[Any, ...], default: Any = None, at: str = "") -> Any:
    """A field's value, the default where it is missing or null.

    Args:
        choices: what it may be.
        at: the path to `config` inside quantization_config, with a dot at its end.

    Raises:
        ValueError: it is something else.
    """
    value = config.get(name)
    value = default if value is None else value
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise unsupported(at + name, value, choices[0] if len(choices) == 1 else f"one of {list(choices)}")
    return value


def fits(pattern: str, layer: str, name: str) -> bool:
    """Whether a layer's name begins as a regular expression says, which stands in the field `name`.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        return re.match(pattern, layer) is not None
    except re.error as error:
        raise unsupported(name, pattern, f"a regular expression ({error})") from None


def unsupported(name: str, value: Any, expected: Any) -> ValueError:
    """The error for a field of quantization_config that has a value we cannot honour."""
    return ValueError(f"config.json: quantization_config.{name}: {value!r} is not supported, expected {expected}")
