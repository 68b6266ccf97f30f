"""What a checkpoint folder says about its model: config.json and generation_config.json, read without torch."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightvllm.quantization.config import quantization_config

# The fields of config.json that may be missing there and still mean something here.
_READ = frozenset(
    (
        "architectures", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
        "rope_parameters", "rope_theta", "original_max_position_embeddings", "sliding_window", "use_sliding_window",
        "max_window_layers", "layer_types", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "dtype",
        "eos_token_id",
    )
)  # fmt: skip
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched to longer contexts.

    `parameters` holds what the type needs beyond theta and factor, under Hugging Face's names.
    """

    type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer's shape, in Hugging Face's terms.

    `layer_windows` gives each layer's sliding window in tokens, None for full attention; `quantization` config.json's
    `quantization_config`, None where the weights are in full precision.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    layer_windows: tuple[int | None, ...] = ()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    dtype: str = "float32"
    quantization: dict[str, Any] | None = None
    eos_token_ids: tuple[int, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def longest(self) -> float:
        """The most tokens the positions are made for; a stretched rope reaches further than the original context."""
        if self.rope.type == "dynamic":
            return math.inf
        return max(self.max_position_embeddings, self.rope.factor * self.rope.original_max_position_embeddings)

    @classmethod
    def from_pretrained(cls, path: str | Path, overrides: dict[str, Any] | None = None) -> "ModelConfig":
        """Read a checkpoint folder; `overrides` take the place of config.json's values.

        Raises:
            ValueError: no such folder, not a model, or a field with a value we cannot honour.
        """
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"model: no folder {str(path)!r}; give a Hugging Face checkpoint folder or a hub name")
        if not (path / "config.json").is_file():
            raise ValueError(f"model: {str(path)!r} has no config.json, so it is not a Hugging Face checkpoint folder")
        hf = _override(read_json(path / "config.json"), overrides or {})
        generation_file = path / "generation_config.json"
        generation = read_json(generation_file) if generation_file.is_file() else {}
        return cls.from_hf(hf, generation)

    @classmethod
    def from_hf(cls, hf: dict[str, Any], generation: dict[str, Any] | None = None) -> "ModelConfig":
        """Build from the contents of config.json and generation_config.json."""
        generation = generation or {}
        architectures = hf.get("architectures") or []
        if len(architectures) != 1:
            raise ValueError(f"config.json: architectures is {architectures!r}, expected exactly one name")
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(hf.get(name), int) or hf[name] < 1:
                raise ValueError(f"config.json: {name} is {hf.get(name)!r}, expected a positive integer")
        num_heads = hf["num_attention_heads"]
        num_kv_heads = hf.get("num_key_value_heads") or num_heads
        if num_heads % num_kv_heads:
            raise ValueError(
                f"config.json: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
            )
        max_positions = hf.get("max_position_embeddings", 2048)
        return cls(
            architecture=architectures[0],
            vocab_size=hf["vocab_size"],
            hidden_size=hf["hidden_size"],
            intermediate_size=hf["intermediate_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=hf.get("head_dim") or hf["hidden_size"] // num_heads,
            max_position_embeddings=max_positions,
            rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
            rope=_rope(hf, max_positions),
            layer_windows=_layer_windows(hf),
            tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
            attention_bias=bool(hf.get("attention_bias", False)),
            mlp_bias=bool(hf.get("mlp_bias", False)),
            hidden_act=hf.get("hidden_act", "silu"),
            dtype=hf.get("dtype") or hf.get("torch_dtype") or "float32",
            quantization=quantization_config(hf),
            eos_token_ids=eos_token_ids(generation) or eos_token_ids(hf),
            generation_defaults=_generation_defaults(generation),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: the file is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_generation_config(source: str, model: ModelConfig) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Sampling parameters to use where a request has none, and the end-of-sequence tokens.

    Args:
        source: "auto" takes the model's own, "vllm" no parameters, and a folder's name what is there.

    Raises:
        ValueError: the folder has no generation_config.json.
    """
    if source == "auto":
        return model.generation_defaults, model.eos_token_ids
    if source == "vllm":
        return {}, model.eos_token_ids
    path = Path(source) / "generation_config.json"
    if not path.is_file():
        raise ValueError(f"generation_config: expected 'auto', 'vllm' or a folder with {path.name}, found {source!r}")
    generation = read_json(path)
    return _generation_defaults(generation), eos_token_ids(generation) or model.eos_token_ids


def eos_token_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """The end-of-sequence tokens that config.json or generation_config.json names."""
    eos = config.get("eos_token_id")
    return tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)


def _override(hf: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """config.json with some values replaced, under their older names too.

    Raises:
        ValueError: neither config.json nor `ModelConfig` knows a name.
    """
    older = {"torch_dtype": "dtype", "rope_scaling": "rope_parameters"}
    for name in overrides:
        if name not in hf and name not in _READ and name not in older:
            raise ValueError(f"hf_overrides: {name!r} is not in config.json, which has {sorted(hf)}")
    result = hf | {older.get(name, name): value for name, value in overrides.items()}
    if "rope_theta" in overrides and result.get("rope_parameters"):
        result["rope_parameters"] = result["rope_parameters"] | {"rope_theta": overrides["rope_theta"]}
    elif "rope_scaling" in overrides and (hf.get("rope_parameters") or {}).get("rope_theta"):
        theta = {"rope_theta": hf["rope_parameters"]["rope_theta"]}  # where transformers 5 keeps it
        result["rope_parameters"] = theta | (overrides["rope_scaling"] or {})
    return result


def _rope(hf: dict[str, Any], max_positions: int) -> RopeConfig:
    # transformers 5 writes `rope_parameters`; older checkpoints have `rope_scaling` beside a top-level `rope_theta`.
    scaling = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    rope_type = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    theta = scaling.pop("rope_theta", None) or hf.get("rope_theta", 10000.0)
    if rope_type not in ROPE_TYPES:
        raise ValueError(f"config.json: rope type {rope_type!r} is not supported, expected one of {list(ROPE_TYPES)}")
    if scaling.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0)) not in (None, 1.0):
        raise ValueError("config.json: partial_rotary_factor below 1 is not supported")
    needed = {"default": (), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(rope_type, ("factor",))
    for name in needed:
        if not isinstance(scaling.get(name), int | float):
            raise ValueError(f"config.json: rope type {rope_type!r} needs a {name}, found {scaling.get(name)!r}")
    factor = scaling.pop("factor", None)
    original = scaling.pop("original_max_position_embeddings", None)
    original = original or hf.get("original_max_position_embeddings") or max_positions
    return RopeConfig(rope_type, float(theta), float(factor or 1.0), int(original), scaling)


def _layer_windows(hf: dict[str, Any]) -> tuple[int | None, ...]:
    num_layers = hf["num_hidden_layers"]
    window = hf.get("sliding_window")
    # Qwen slides only where `use_sliding_window` says so; Mistral knows no such field.
    is_optional = "max_window_layers" in hf or "use_sliding_window" in hf
    if window is None or (is_optional and not hf.get("use_sliding_window")):
        return (None,) * num_layers
    layer_types = hf.get("layer_types")
    if layer_types is None:
        # Checkpoints from before `layer_types`: Qwen slides from layer `max_window_layers` on, Mistral everywhere.
        first = hf.get("max_window_layers", num_layers) if is_optional else 0
        layer_types = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    known = {"full_attention": None, "sliding_attention": window}
    if len(layer_types) != num_layers or not set(layer_types) <= known.keys():
        raise ValueError(f"config.json: layer_types must be {num_layers} of {list(known)}, found {layer_types!r}")
    return tuple(known[layer_type] for layer_type in layer_types)


def _generation_defaults(generation: dict[str, Any]) -> dict[str, Any]:
    names = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
    defaults = {name: generation[name] for name in names if generation.get(name) is not None}
    if generation.get("max_new_tokens") is not None:
        defaults["max_tokens"] = generation["max_new_tokens"]
    if generation.get("do_sample") is False:
        defaults["temperature"] = 0.0
    return defaults
