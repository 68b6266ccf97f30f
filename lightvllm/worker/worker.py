"""A worker: loads the model, makes the cache, runs steps."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightvllm.attention.registry import attention_backend
from lightvllm.config import EngineConfig
from lightvllm.engine.step import StepInput, StepOutput
from lightvllm.hub import resolve_model
from lightvllm.kernels.isa import use_isa
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import load_packed_model, torch_dtype
from lightvllm.worker.grammars import Grammars
from lightvllm.worker.kv_cache import KVCachePlan, allocate_kv_cache, plan_kv_cache
from lightvllm.worker.memory import keep_freed_memory, make_resident
from lightvllm.worker.model_runner import ModelRunner

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Worker:
    """One device's share of the engine.

    Raises:
        ValueError: a checkpoint or a setting that does not work, in words.
    """

    def __init__(self, path: Path, config: EngineConfig, model_config: ModelConfig) -> None:
        self.device = resolve_device(config.device)
        use_isa(config.cpu_isa)
        self.dtype = torch_dtype(config.dtype, model_config)
        backend = attention_backend(config.attention_backend, self.device, self.dtype, model_config)
        model = load_packed_model(path, model_config, self.dtype, self.device, config.quantization, config.load_format)
        weight_bytes = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.plan: KVCachePlan = plan_kv_cache(config, model_config, self.dtype, self.device, weight_bytes)
        cache = allocate_kv_cache(self.plan, model_config, self.device)
        self.runner = ModelRunner(
            model,
            cache,
            backend,
            config.max_num_seqs,
            self.plan.max_model_len,
            Grammars(model_config.vocab_size, partial(_load_grammar_tokenizer, path, config, model_config.vocab_size)),
        )
        if self.device.type == "cpu":
            keep_freed_memory()
            if config.kv_cache_memory_bytes is not None:  # asked for, not a guess that a laptop may never need
                make_resident([tensor for layer in cache for tensor in (layer.key, layer.value)])

    def execute(self, step: StepInput) -> StepOutput:
        """See `ModelRunner.execute`."""
        return self.runner.execute(step)


def _load_grammar_tokenizer(path: Path, config: EngineConfig, vocab_size: int) -> "LLTokenizer":
    """The tokenizer for `Grammars`; see `lightvllm.structured.matcher.load_tokenizer`."""
    from lightvllm.structured.matcher import load_tokenizer

    if config.skip_tokenizer_init:
        raise ValueError("a structured output needs a tokenizer, which skip_tokenizer_init left out")
    folder = path
    if config.tokenizer is not None:
        folder = resolve_model(config.tokenizer, token=config.hf_token, field="tokenizer")
    return load_tokenizer(folder, vocab_size)


def resolve_device(name: str) -> torch.device:
    """The device a user names; "auto" is a GPU where there is one.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r} is not a device, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r} is not supported, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"device: {name!r} is not here, this machine has {torch.cuda.device_count()} CUDA devices")
    return device
