"""What a user can set: one frozen dataclass, checked once, from which the command line's flags are made too."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightvllm.sampling_params import refuse_unknown_arguments

# The text-to-SQL model that ships with the package, used where no model is named.
DEFAULT_MODEL = Path(__file__).parent / "default_model"


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@refuse_unknown_arguments
@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The engine's settings, with vLLM's names and defaults."""

    model: str = field(metadata={"help": "checkpoint folder or hub name (owner/name)"})
    tokenizer: str | None = _option(None, "folder or hub name of the tokenizer, if not the model's")
    skip_tokenizer_init: bool = _option(False, "load no tokenizer: prompts are token ids, outputs have no text")
    revision: str | None = _option(None, "branch, tag or commit of a hub model")
    hf_token: str | None = _option(None, "token for the hub")
    hf_overrides: dict[str, Any] | None = field(
        default=None, metadata={"help": "values that take the place of config.json's (JSON)"}
    )
    dtype: str = _option("auto", "auto (the checkpoint's), float32, bfloat16 or float16")
    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    seed: int = _option(0, "of the random draws of requests without a seed of their own")
    max_model_len: int | None = _option(
        None, "longest prompt plus output in tokens; default: the model's, or what fits"
    )
    max_num_seqs: int = _option(256, "most requests in one step")
    max_num_batched_tokens: int = _option(4096, "most tokens computed in one step")
    long_prefill_token_threshold: int = _option(0, "most tokens of one request computed in one step; 0: no limit")
    block_size: int = _option(16, "tokens per KV-cache block")
    kv_cache_memory_bytes: int | None = _option(None, "size of the KV cache; default: from the memory that is free")
    gpu_memory_utilization: float = _option(0.92, "share of a GPU's memory to use, where no KV-cache size is given")
    enable_prefix_caching: bool = _option(True, "keep the KV cache of prompts for later ones that begin alike")
    scheduling_policy: Literal["fcfs", "priority"] = _option("fcfs", "which request goes first")
    max_logprobs: int = _option(20, "most log-probabilities a request may ask for per token; -1: no limit")
    generation_config: str = _option("auto", "default sampling parameters: auto (the model's), vllm (none) or a folder")
    chat_template: str | None = _option(None, "Jinja chat template, or a file with one, in place of the model's")
    attention_backend: Literal["auto", "kernel", "sdpa", "reference"] = _option("auto", "attention implementation")

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("max_model_len", "kv_cache_memory_bytes"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        _require(
            0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization", self.gpu_memory_utilization, "in (0, 1]"
        )
        _require(self.max_logprobs >= -1, "max_logprobs", self.max_logprobs, "at least -1")
        for name in ("scheduling_policy", "attention_backend"):
            choices = option_choices(name)
            _require(getattr(self, name) in choices, name, getattr(self, name), f"one of {choices}")


def option_choices(name: str) -> list[str]:
    """The values a Literal-typed option of `EngineConfig` allows."""
    annotation = EngineConfig.__annotations__[name]
    return list(annotation.__args__)


def _require(condition: bool, name: str, value: Any, bound: str) -> None:
    if not condition:
        raise ValueError(f"{name}: {value!r} is out of range, expected {bound}")
