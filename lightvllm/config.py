"""What a user can set: one frozen dataclass, checked once, from which the command line's flags are made too."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

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
    hf_token: str | None = field(default=None, repr=False, metadata={"help": "token for the hub"})
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
    # What vLLM's users set explicitly and has one value here so far: that one is taken, any other is an error.
    tensor_parallel_size: Literal[1] = _option(1, "devices that share the model: one so far")
    enforce_eager: Literal[True] = _option(True, "run without captured graphs: always so far")
    trust_remote_code: Literal[False] = _option(False, "run code from a checkpoint: never")

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))  # vLLM takes torch.bfloat16, too
        for option in fields(self):
            _check_type(option.name, getattr(self, option.name), option.type)
        least = {"max_num_seqs": 1, "max_num_batched_tokens": 1, "block_size": 1, "max_model_len": 2}
        least |= {"kv_cache_memory_bytes": 1, "long_prefill_token_threshold": 0, "max_logprobs": -1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name}: {value} is out of range, expected at least {bound}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization: {self.gpu_memory_utilization} is out of range, expected (0, 1]")


def _check_type(name: str, value: Any, annotation: Any) -> None:
    """Raise a ValueError unless the value is of the annotated type: a class, a Literal, or either of these or None."""
    if get_origin(annotation) is Literal:
        if not any(
            value is choice or (value == choice and type(value) is type(choice)) for choice in annotation.__args__
        ):
            raise ValueError(f"{name}: {value!r} is not supported, expected one of {list(annotation.__args__)}")
        return
    kinds = tuple(get_origin(kind) or kind for kind in (get_args(annotation) or (annotation,)))
    is_number = float in kinds and type(value) is int
    if not (type(value) in kinds or is_number):
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: {value!r} is a {type(value).__name__}, expected {expected}")
