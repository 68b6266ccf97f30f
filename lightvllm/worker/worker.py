"""A worker: loads the model, makes the cache, runs steps, and sleeps."""

import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lightvllm.attention.paged import DeviceAttention, LayerCache
from lightvllm.attention.registry import attention_backend
from lightvllm.config import EngineConfig
from lightvllm.engine.step import PendingOutput, StepInput, StepOutput
from lightvllm.errors import DeviceLost
from lightvllm.hub import resolve_model
from lightvllm.kernels import gpu
from lightvllm.kernels.isa import use_isa
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import load_packed_model, torch_dtype
from lightvllm.models.decoder import CausalLM
from lightvllm.worker.device_runner import DeviceRunner
from lightvllm.worker.gpu_memory import check_weights_fit, format_bytes, measure_memory, within_memory
from lightvllm.worker.grammars import Grammars
from lightvllm.worker.kv_cache import KVCachePlan, allocate_kv_cache, plan_kv_cache, plan_of_blocks
from lightvllm.worker.memory import keep_freed_memory, make_resident, return_freed_memory
from lightvllm.worker.model_runner import HostRunner, ModelRunner
from lightvllm.worker.parked_weights import ParkedWeights

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Worker:
    """One device's share of the engine.

    Raises:
        ValueError: a checkpoint or a setting that does not work, in words.
    """

    def __init__(self, path: Path, config: EngineConfig, model_config: ModelConfig) -> None:
        self.path, self.config, self.model_config = path, config, model_config
        self.device = resolve_device(config.device)
        use_isa(config.cpu_isa)
        self.dtype = torch_dtype(config.dtype, model_config)
        if self.device.type == "cuda":
            gpu.enable()
        self.backend = attention_backend(
            config.attention_backend,
            self.device,
            self.dtype,
            model_config,
            is_int8=config.kv_cache_dtype == "int8",
            batch_invariant=config.batch_invariant,
        )
        # See `lightvllm.executor.base.Executor.runs_ahead`.
        self.runs_ahead = issubclass(self.backend, DeviceAttention) and config.async_scheduling
        is_capturable = issubclass(self.backend, DeviceAttention) and self.backend.is_capturable
        self._captures_graphs = is_capturable and not config.enforce_eager
        with self._device_at_hand():
            # What the worker has while it is awake; asleep it has the plan, and its weights may be parked.
            self._model: CausalLM | None = self._load()
            self.grammars = Grammars(
                model_config.vocab_size, partial(_load_grammar_tokenizer, path, config, model_config.vocab_size)
            )
            self._parked: ParkedWeights | None = None
            self.plan: KVCachePlan = self._plan(self._model)
            self._cache: list[LayerCache] | None = self._allocate(self.plan)
            self._runner: ModelRunner | None = self._make_awake_runner(self._model, self._cache)

    @property
    def runner(self) -> ModelRunner:
        """Runs the steps; there is none while the worker sleeps."""
        assert self._runner is not None, "the worker sleeps"
        return self._runner

    def submit(self, step: StepInput) -> PendingOutput:
        """See `ModelRunner.submit`.

        Raises:
            MemoryError: the GPU has not the memory for this step, in words.
        """
        with self._device_at_hand():
            pending = within_memory(partial(self.runner.submit, step), lambda: _no_memory_for_step(step, self.device))

        def wait() -> StepOutput:
            with self._device_at_hand():
                return pending()

        return wait

    @contextmanager
    def _device_at_hand(self) -> Iterator[None]:
        """Kernels, events and memory are of this device inside, which may not be the first of its kind.

        Raises:
            DeviceLost: CUDA reports an error after which nothing works there any more.
        """
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            try:
                yield
            except torch.AcceleratorError as error:
                raise DeviceLost(f"{self.device} is lost to this process: {error}") from error

    def sleep(self, level: int) -> None:
        """Give up the KV cache, and the weights: at level 1 they go to the host's memory, at level 2 nowhere.

        On a CPU they are in the host's memory already, and level 1 leaves them where they are. Who sleeps already may
        fall asleep more deeply.

        Raises:
            ValueError: the host has not the memory for the weights. Nothing has changed then.
        """
        with self._device_at_hand():
            self._sleep(level)

    def _sleep(self, level: int) -> None:
        if level == 1 and self.device.type == "cuda" and self._model is not None and self._parked is None:
            self._parked = ParkedWeights(self._model, self.device)
        if level == 2:
            self._model = self._parked = None
        self._runner = self._cache = None  # captured graphs, too, which know old addresses
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            return_freed_memory()

    def wake_up(self, tags: Collection[str]) -> None:
        """Take back what `sleep` gave up: "weights", "kv_cache". What is there is left alone.

        Raises:
            ValueError: the memory has been taken by others. It may be tried again.
        """
        with self._device_at_hand():
            self._wake_up(tags)

    def _wake_up(self, tags: Collection[str]) -> None:
        if "weights" in tags:
            if self._model is None:
                self._model = self._load()
            if self._parked is not None:
                within_memory(self._parked.restore, lambda: _no_memory_to_wake_up(self.device))
                self._parked = None
        if "kv_cache" in tags and self._cache is None:
            self._cache = self._allocate(self.plan)
        if self._runner is None and self._cache is not None and self._model is not None and self._parked is None:
            self._runner = self._make_awake_runner(self._model, self._cache)

    def _load(self) -> CausalLM:
        config, quantization = self.model_config, self.config.quantization
        load = partial(
            load_packed_model,
            self.path,
            config,
            self.dtype,
            self.device,
            quantization,
            self.config.load_format,
            self.config.batch_invariant,
        )
        if self.device.type == "cpu":
            return load()
        if self.config.load_format != "dummy":  # of which there is no checkpoint to say how large they are
            check_weights_fit(self.path, config, self.dtype, self.device, quantization)
        return within_memory(load, lambda: _no_memory_to_load(self.device))

    def _plan(self, model: CausalLM) -> KVCachePlan:
        config, memory = self.config, None
        if self.device.type == "cuda" and config.kv_cache_memory_bytes is None:

            def run(num_tokens: int, num_requests: int) -> None:
                smallest = plan_of_blocks(1, config, self.model_config, self.dtype)
                cache = self._allocate(smallest)
                longest = config.max_model_len or self.model_config.max_position_embeddings
                self._make_runner(model, cache, longest, uses_graphs=False).profile_run(num_tokens, num_requests)

            memory = measure_memory(config, self.device, run, captures_graphs=self._captures_graphs)
        return plan_kv_cache(config, self.model_config, self.dtype, self.device, memory)

    def _allocate(self, plan: KVCachePlan) -> list[LayerCache]:
        num_spare_blocks = int(issubclass(self.backend, DeviceAttention))
        cache = within_memory(
            partial(allocate_kv_cache, plan, self.model_config, self.device, num_spare_blocks),
            lambda: _no_memory_for_cache(plan, self.device),
        )
        if self.device.type == "cpu":
            keep_freed_memory()
            if self.config.kv_cache_memory_bytes is not None:  # asked for, not a guess that a laptop may never need
                make_resident([tensor for layer in cache for tensor in (layer.key, layer.value)])
        return cache

    def _make_awake_runner(self, model: CausalLM, cache: list[LayerCache]) -> ModelRunner:
        return self._make_runner(model, cache, self.plan.max_model_len, uses_graphs=self._captures_graphs)

    def _make_runner(
        self, model: CausalLM, cache: list[LayerCache], max_model_len: int, uses_graphs: bool
    ) -> ModelRunner:
        config, limits = self.config, (self.config.max_num_seqs, max_model_len, self.grammars)
        if issubclass(self.backend, DeviceAttention):
            return DeviceRunner(model, cache, self.backend, *limits, config.max_num_batched_tokens, uses_graphs)
        return HostRunner(model, cache, self.backend, *limits)


def _free(device: torch.device) -> str:
    return f"{format_bytes(torch.cuda.mem_get_info(device)[0])} of {device}'s memory are free"


def _no_memory_to_load(device: torch.device) -> ValueError:
    return ValueError(
        f"model: {device} ran out of memory while the weights were loaded, {_free(device)} now; end what else uses the "
        f"GPU, round the weights (quantization='int8' or 'w4'), or take a smaller model"
    )


def _no_memory_for_cache(plan: KVCachePlan, device: torch.device) -> ValueError:
    size = format_bytes(plan.num_blocks * plan.block_bytes)
    return ValueError(
        f"gpu_memory_utilization, kv_cache_memory_bytes: the KV cache of {size} cannot be allocated, {_free(device)}; "
        f"lower them, or end what else uses the GPU"
    )


def _no_memory_to_wake_up(device: torch.device) -> ValueError:
    return ValueError(
        f"wake_up: the weights do not fit any more, {_free(device)}; end what else uses the GPU, and wake up again"
    )


def _no_memory_for_step(step: StepInput, device: torch.device) -> MemoryError:
    return MemoryError(
        f"a step of {sum(step.num_scheduled_tokens)} tokens and {len(step.request_ids)} requests needs more memory "
        f"than {device} has left; lower max_num_batched_tokens, max_num_seqs or gpu_memory_utilization"
    )


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
