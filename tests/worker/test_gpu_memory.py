"""What is said of a GPU's memory, and that it is so: the parts on a pretended GPU, the whole on a real one."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams, kernels
from lightvllm.bench.internals import worker_of
from lightvllm.bench.quality.measure import bytes_of_weights
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint
from lightvllm.config import EngineConfig
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import load_packed_model
from lightvllm.models.footprint import weight_bytes
from lightvllm.worker.cuda_graph import Sampling
from lightvllm.worker.gpu_memory import (
    GRAPH_OBJECT_BYTES,
    MemoryUse,
    check_weights_fit,
    format_bytes,
    measure_memory,
    measure_peak,
    within_memory,
)
from lightvllm.worker.kv_cache import plan_kv_cache
from tests.quantization import writers as quantized
from tests.quantization.cases import CASES

GIB, MIB = 1 << 30, 1 << 20
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = {"vocab_size": 3000, "hidden_size": 256, "intermediate_size": 768, "layers": 3, "heads": 4, "kv_heads": 2}
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A model in bfloat16 whose head is its embedding, or is not."""
    made: dict[bool, Path] = {}

    def get(tied: bool = True) -> Path:
        if tied not in made:
            made[tied] = tmp_path_factory.mktemp("model")
            write_checkpoint(made[tied], Shape(**SMALL, tied=tied, max_position_embeddings=512))  # type: ignore[arg-type]
        return made[tied]

    return get


@pytest.mark.skipif(not kernels.COMPILED, reason="the reference keeps a byte for 4 bits")
class TestBytesOfWeights:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("quantization", [None, "int8", "w4"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_are_those_that_are_loaded(
        self, dtype: torch.dtype, quantization: str | None, tied: bool, folder: Callable[[bool], Path]
    ) -> None:
        path = folder(tied)
        config = ModelConfig.from_pretrained(path)
        told = weight_bytes(path, config, dtype, quantization)
        model = load_packed_model(path, config, dtype, CPU, quantization)
        loaded = bytes_of_weights(model)
        if tied and quantization is None:  # the CPU's products need the head's weight in another order, too
            loaded -= 3000 * 256 * dtype.itemsize
        assert told == pytest.approx(loaded, rel=0.03)  # packed outputs are padded

    @pytest.mark.parametrize("case", ["packed-8", "w8a8", "fp8-block", "nf4-a-plain-part", "packed-head"])
    def test_of_a_quantized_checkpoint(self, case: str, tmp_path: Path) -> None:
        """Nearly: some formats' scales take more room here than in the file."""
        quantized.write_checkpoint(tmp_path, CASES[case])
        path = tmp_path / "quantized"
        config = ModelConfig.from_pretrained(path)
        loaded = bytes_of_weights(load_packed_model(path, config, torch.float32, CPU, None))
        assert 0.92 * loaded < weight_bytes(path, config, torch.float32, None) <= loaded


class PretendedGPU:
    """Of 16 GiB, 0.5 of them in use by others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total, self.others, self.allocated, self.peak = 16 * GIB, GIB // 2, 0, 0
        pretended: dict[str, Callable[..., Any]] = {
            "mem_get_info": lambda device: (self.total - self.others - self.allocated, self.total),
            "memory_allocated": lambda device: self.allocated,
            "memory_reserved": lambda device: self.allocated,
            "max_memory_allocated": lambda device: self.peak,
            "reset_peak_memory_stats": lambda device: setattr(self, "peak", self.allocated),
            "synchronize": lambda device: None,
            "empty_cache": lambda: None,
        }
        for name, function in pretended.items():
            monkeypatch.setattr(torch.cuda, name, function)

    def run(self, size: int) -> None:
        """Something that allocates for a while."""
        if self.allocated + size > self.total - self.others:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1e99 GiB")
        self.peak = max(self.peak, self.allocated + size)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGPU:
    return PretendedGPU(monkeypatch)


class TestWeightsThatDoNotFit:
    def error(self, gpu: PretendedGPU, free: int, path: Path, dtype: torch.dtype, quantization: str | None) -> str:
        gpu.allocated = gpu.total - gpu.others - free
        with pytest.raises(ValueError, match=r"^model: its weights need") as raised:
            check_weights_fit(path, ModelConfig.from_pretrained(path), dtype, CUDA, quantization)
        return str(raised.value)

    def test_are_told_with_what_fits(self, gpu: PretendedGPU, folder: Callable[[bool], Path]) -> None:
        path = folder(True)  # 3000 x 256 of embedding, three layers of 983,040 weights
        message = self.error(gpu, 8 * MIB, path, torch.float32, None)
        assert message == (
            "model: its weights need 14.2 MiB in float32, but of the 16 GiB of cuda 8 MiB are free; what fits is "
            "dtype='bfloat16' (7.09 MiB) or quantization='int8' (6.53 MiB) or quantization='w4' (5.18 MiB)"
        )
        message = self.error(gpu, 4 * MIB, path, torch.bfloat16, None)
        assert "need 7.09 MiB in bfloat16" in message
        assert message.endswith("what fits is quantization='w4' (3.71 MiB)")

    def test_nor_in_any_other_way(self, gpu: PretendedGPU, folder: Callable[[bool], Path]) -> None:
        message = self.error(gpu, MIB, folder(False), torch.bfloat16, None)
        assert "even quantization='w4' needs 3.71 MiB: end what else uses the GPU" in message
        message = self.error(gpu, MIB, folder(False), torch.bfloat16, "w4")
        assert "in w4, but of the 16 GiB of cuda 1 MiB are free; end what else uses the GPU" in message

    def test_what_fits_is_not_refused(self, gpu: PretendedGPU, folder: Callable[[bool], Path]) -> None:
        path = folder(True)
        gpu.allocated = gpu.total - gpu.others - 8 * MIB
        check_weights_fit(path, ModelConfig.from_pretrained(path), torch.bfloat16, CUDA, None)


class TestMeasuring:
    @pytest.mark.parametrize("captures_graphs", [False, True])
    def test_the_sum_has_every_part(self, captures_graphs: bool, gpu: PretendedGPU) -> None:
        steps = []

        def run_step(num_tokens: int, num_requests: int) -> None:
            steps.append((num_tokens, num_requests))
            gpu.others += 10 * MIB  # kernels that are loaded when they are first used
            gpu.run(num_tokens * MIB)

        gpu.allocated = 4 * GIB
        config = EngineConfig(model="", max_num_batched_tokens=1024, max_num_seqs=64)
        memory = measure_memory(config, CUDA, run_step, captures_graphs)
        assert steps == [(1024, 64), (64, 64)][: 1 + captures_graphs]
        assert (memory.total, memory.weights, memory.activations) == (16 * GIB, 4 * GIB, GIB)
        assert memory.graphs == (64 * MIB + GRAPH_OBJECT_BYTES if captures_graphs else 0)
        assert memory.others == gpu.others > GIB // 2

    def test_a_step_has_a_token_for_each_request(self, gpu: PretendedGPU) -> None:
        steps = []
        config = EngineConfig(model="", max_num_batched_tokens=8, max_num_seqs=64)
        measure_memory(config, CUDA, lambda *step: steps.append(step), captures_graphs=False)
        assert steps[0] == (8, 8)

    def test_a_step_that_does_not_fit(self, gpu: PretendedGPU) -> None:
        gpu.allocated = 15 * GIB
        config = EngineConfig(model="", max_num_batched_tokens=1024, max_num_seqs=64)
        with pytest.raises(
            ValueError,
            match=r"^max_num_batched_tokens, max_num_seqs: a step of 1024 tokens and 64 requests does not fit on cuda "
            r"beside 15 GiB of weights; lower them",
        ):
            measure_memory(config, CUDA, lambda num_tokens, _: gpu.run(num_tokens * MIB), captures_graphs=False)


def test_what_failed_is_gone_before_it_is_told() -> None:
    """Also its tensors, which the traceback of torch's error holds."""
    held: list[Any] = []

    class Tensor:
        def __del__(self) -> None:
            held.append("freed")

    def work() -> None:
        tensor = Tensor()
        raise torch.OutOfMemoryError(f"no room beside {tensor}")

    def error() -> Exception:
        held.append("told")
        return ValueError("in words")

    with pytest.raises(ValueError, match="in words") as raised:
        within_memory(work, error)
    assert held == ["freed", "told"]
    assert raised.value.__context__ is None


class TestPlan:
    MODEL = ModelConfig.from_hf(Shape(**SMALL, max_position_embeddings=40_960).hf_config())  # type: ignore[arg-type]
    MEMORY = MemoryUse(total=80 * GIB, others=GIB, weights=16 * GIB, activations=2 * GIB, graphs=GIB)

    def plan(self, memory: MemoryUse = MEMORY, **options: Any) -> Any:
        config = EngineConfig(model="", **{"max_num_seqs": 4096, **options})
        return plan_kv_cache(config, self.MODEL, torch.bfloat16, CUDA, memory)

    def test_the_cache_gets_what_is_left_of_the_share(self) -> None:
        plan = self.plan(gpu_memory_utilization=0.9)
        size = plan.num_blocks * plan.block_bytes
        assert 52 * GIB >= size > 52 * GIB - plan.block_bytes  # 72 of 80, less 20

    def test_every_part_of_the_sum_is_printed(self) -> None:
        text = str(self.plan(gpu_memory_utilization=0.9))
        assert "52 GiB (90% of 80 GiB, less what else is used); longest request 40960 tokens; " in text
        assert text.endswith(
            "memory, 80 GiB: weights 16 GiB, the largest step 2 GiB, captured graphs 1 GiB, KV cache 52 GiB, "
            "other programs and CUDA 1 GiB, left 8 GiB"
        )

    def test_what_is_not_needed_is_left(self) -> None:
        plan = self.plan(max_num_seqs=2, max_model_len=1600)
        assert plan.num_blocks == 200
        assert f"left {format_bytes(60 * GIB - 200 * plan.block_bytes)}" in str(plan)

    def test_no_room_at_all(self) -> None:
        memory = MemoryUse(total=16 * GIB, others=GIB, weights=14 * GIB, activations=GIB, graphs=0)
        with pytest.raises(
            ValueError, match=r"^gpu_memory_utilization: 0.92 of 16 GiB leaves no room .*weights 14 GiB"
        ):
            self.plan(memory)

    def test_a_context_that_does_not_fit(self) -> None:
        memory = MemoryUse(total=16 * GIB, others=GIB, weights=13 * GIB, activations=GIB - 10 * MIB, graphs=0)
        with pytest.raises(
            ValueError, match=r"^max_model_len: one request of 40960 .* enough for 3408; lower .*gpu_memory_utilization"
        ):
            self.plan(memory, max_model_len=40_960, gpu_memory_utilization=15 / 16)
        assert self.plan(memory, gpu_memory_utilization=15 / 16).max_model_len == 3408

    def test_an_order_counts_more(self, gpu: PretendedGPU) -> None:
        plan = self.plan(kv_cache_memory_bytes=GIB)
        assert plan.num_blocks == GIB // plan.block_bytes
        with pytest.raises(
            ValueError, match=r"kv_cache_memory_bytes: .* is more than the 15.5 GiB of memory available"
        ):
            self.plan(kv_cache_memory_bytes=20 * GIB)


class TestStepsWithoutMemory:
    """On any device: torch's error is raised in the place of a real one."""

    OPTIONS = {"skip_tokenizer_init": True, "kv_cache_memory_bytes": 8 << 20}  # noqa: RUF012
    PROMPTS = [[i, 7, 8, 9] for i in range(5)]  # noqa: RUF012
    GREEDY = SamplingParams(temperature=0, max_tokens=6)

    def tokens(self, llm: LLM) -> list[list[int]]:
        return [one.outputs[0].token_ids for one in llm.generate(self.PROMPTS, self.GREEDY, use_tqdm=False)]

    def fail(self, llm: LLM, monkeypatch: pytest.MonkeyPatch, condition: Callable[[Any], bool]) -> None:
        runner = llm.engine.core.executor.worker.runner  # type: ignore[attr-defined]
        submit = runner.submit

        def failing(step: Any) -> Any:
            if condition(step):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1e99 GiB")
            return submit(step)

        monkeypatch.setattr(runner, "submit", failing)

    def test_requests_are_tried_alone(
        self, folder: Callable[[bool], Path], make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        llm = make_llm(folder(True), **self.OPTIONS)
        expected = self.tokens(llm)
        failures = iter([True])
        self.fail(llm, monkeypatch, lambda step: len(step.request_ids) > 1 and next(failures, False))
        assert self.tokens(llm) == expected
        assert next(failures, None) is None

    def test_what_fails_alone_is_ended_in_words(
        self,
        folder: Callable[[bool], Path],
        make_llm: Callable[..., LLM],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        llm = make_llm(folder(True), **self.OPTIONS)
        self.fail(llm, monkeypatch, lambda step: len(step.new_requests) > 0)
        with caplog.at_level(logging.ERROR):
            outputs = llm.generate(self.PROMPTS, self.GREEDY, use_tqdm=False)
        for output in outputs:
            assert output.outputs[0].finish_reason == "error"
            words = str(output.outputs[0].stop_reason)
            assert "a step of 4 tokens and 1 requests needs more memory than" in words
            assert "lower max_num_batched_tokens, max_num_seqs or gpu_memory_utilization" in words
            assert "Tried to allocate" not in words


def test_profiling_leaves_nothing_behind(folder: Callable[[bool], Path], make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(folder(True), skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 20, max_num_seqs=9)
    runner = llm.engine.core.executor.worker.runner  # type: ignore[attr-defined]
    longest = runner.requests.token_ids.shape[1]
    steps = []
    submit = runner.submit
    runner.submit = lambda step: steps.append(step) or submit(step)
    for num_tokens, num_requests in ((2 * longest + 50, 9), (9, 9), (40, 1)):
        runner.profile_run(num_tokens, num_requests)
        assert sum(steps[-1].num_scheduled_tokens) == num_tokens
        assert len(steps[-1].new_requests) == num_requests
        assert len(steps[-1].new_requests[0].token_ids) == longest - 1
    assert runner.requests.row_of == {}
    assert len(runner.requests.free_rows) == 9
    assert not runner.sampling.features.any()


@pytest.fixture
def fraction() -> Iterator[Callable[[int], None]]:
    """`fraction(size)`: so many bytes more than it has now is all that torch may take of the GPU."""

    def set_to(size: int) -> None:
        torch.cuda.empty_cache()
        limit = torch.cuda.memory_reserved() + size
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])

    yield set_to
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of some 180 MiB."""
    path = tmp_path_factory.mktemp("larger")
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "layers": 4, "heads": 8, "kv_heads": 4}
    write_checkpoint(path, Shape(**sizes, max_position_embeddings=4096))
    return path


@on_gpu
class TestOnAGPU:
    def options(self, **options: Any) -> dict[str, Any]:
        return {"device": "cuda", "skip_tokenizer_init": True, **options}

    def test_a_peak_is_what_was_allocated(self) -> None:
        kept = torch.empty(10 * MIB, dtype=torch.uint8, device="cuda")

        def run() -> None:
            first = torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
            del first
            torch.empty(32 * MIB, dtype=torch.uint8, device="cuda")

        assert measure_peak(CUDA, run) == 64 * MIB
        del kept

    def test_the_largest_steps_stay_within_the_share(self, larger: Path) -> None:
        """After the start nothing is allocated that the plan does not have."""
        total = torch.cuda.mem_get_info()[1]
        prompts = [[(i * j) % 151_000 for j in range(1, 1024)] for i in range(1, 101)]
        params = [
            SamplingParams(top_p=0.9, top_k=50, presence_penalty=0.5, seed=i, max_tokens=4, logprobs=2, ignore_eos=True)
            for i in range(100)
        ]
        share = 0.025  # so small that the cache is what is left of it
        options = self.options(gpu_memory_utilization=share, max_num_batched_tokens=8192, max_num_seqs=100)
        with LLM(larger, **options) as llm:
            plan = llm.engine.core.executor.plan  # type: ignore[attr-defined]
            print(plan)
            memory = plan.memory
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            llm.generate(prompts, params, use_tqdm=False)
            peak = torch.cuda.max_memory_allocated() - before
            print("steps took", format_bytes(peak), "of", format_bytes(memory.activations))
            assert 0.25 * memory.activations < peak <= memory.activations + memory.graphs
            parts = memory.used + plan.num_blocks * plan.block_bytes
            assert share * total - plan.block_bytes < parts <= share * total
            assert total - torch.cuda.mem_get_info()[0] < (share + 0.02) * total

    def test_weights_are_counted_before_they_are_loaded(self, larger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        info = torch.cuda.mem_get_info
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (100 * MIB, info()[1]))
        before = torch.cuda.memory_allocated()
        with pytest.raises(
            ValueError, match=r"^model: its weights need .* in bfloat16, but of the .* 100 MiB are free"
        ):
            LLM(larger, **self.options())
        assert torch.cuda.memory_allocated() == before

    @pytest.mark.parametrize("quantization", [None, "int8", "w4"])
    def test_as_many_as_are_loaded(self, quantization: str | None, larger: Path) -> None:
        before = torch.cuda.memory_allocated()
        told = weight_bytes(larger, ModelConfig.from_pretrained(larger), torch.bfloat16, quantization)
        with LLM(larger, **self.options(quantization=quantization)) as llm:
            weights = llm.engine.core.executor.plan.memory.weights  # type: ignore[attr-defined]
        print(quantization, "told", format_bytes(told), "loaded", format_bytes(weights - before))
        assert weights - before == pytest.approx(told, rel=0.05)

    def test_no_memory_while_loading(self, larger: Path, fraction: Callable[[int], None]) -> None:
        fraction(64 * MIB)
        with pytest.raises(ValueError, match=r"^model: cuda ran out of memory while the weights were loaded"):
            LLM(larger, **self.options())

    def test_no_memory_for_the_largest_step(self, larger: Path, fraction: Callable[[int], None]) -> None:
        fraction(weight_bytes(larger, ModelConfig.from_pretrained(larger), torch.bfloat16, None) + 100 * MIB)
        with pytest.raises(ValueError, match=r"^max_num_batched_tokens, max_num_seqs: a step of 8192 tokens and 256"):
            LLM(larger, **self.options(max_num_batched_tokens=8192))

    def test_no_memory_for_the_cache(self, larger: Path, fraction: Callable[[int], None]) -> None:
        fraction(2 * GIB)
        with pytest.raises(ValueError, match=r"^gpu_memory_utilization, kv_cache_memory_bytes: the KV cache of 4 GiB"):
            LLM(larger, **self.options(kv_cache_memory_bytes=4 * GIB))

    def test_no_memory_in_a_step(self, larger: Path, fraction: Callable[[int], None]) -> None:
        """All that do not fit alone end in words, and the engine lives: later ones get what they always get."""
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        small, large = [[3, 4, 5]], [[i] * 4000 for i in range(3)]
        with LLM(larger, **self.options(kv_cache_memory_bytes=GIB, max_num_batched_tokens=8192)) as llm:
            expected = llm.generate(small, params, use_tqdm=False)[0].outputs[0].token_ids
            fraction(16 * MIB)
            for output in llm.generate(large, params, use_tqdm=False):
                assert output.outputs[0].finish_reason == "error"
                assert "lower max_num_batched_tokens, max_num_seqs" in str(output.outputs[0].stop_reason)
            assert llm.generate(small, params, use_tqdm=False)[0].outputs[0].token_ids == expected
            torch.cuda.set_per_process_memory_fraction(1.0)
            assert {one.outputs[0].finish_reason for one in llm.generate(large, params, use_tqdm=False)} == {"length"}

    def test_no_memory_to_wake_up(self, larger: Path, fraction: Callable[[int], None]) -> None:
        """It sleeps on, and wakes up once the memory is free again."""
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        options = self.options(kv_cache_memory_bytes=GIB, enable_sleep_mode=True)
        with LLM(larger, **options) as llm:
            expected = llm.generate([[3, 4, 5]], params, use_tqdm=False)[0].outputs[0].token_ids
            llm.sleep()
            for size, field in ((64 * MIB, "wake_up: the weights"), (600 * MIB, "kv_cache_memory_bytes: the KV cache")):
                fraction(size)
                with pytest.raises(ValueError, match=field):
                    llm.wake_up()
                assert llm.is_sleeping
            torch.cuda.set_per_process_memory_fraction(1.0)
            llm.wake_up()
            assert llm.generate([[3, 4, 5]], params, use_tqdm=False)[0].outputs[0].token_ids == expected

    def test_no_memory_to_capture(
        self, larger: Path, fraction: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Decodes go on without a graph, in the same process, and later ones get one again."""
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        prompts = [[i, 7, 8, 9] for i in range(1, 9)]
        with LLM(larger, **self.options(kv_cache_memory_bytes=GIB)) as llm:
            graphs = worker_of(llm).runner.graphs  # type: ignore[attr-defined]
            capture = graphs._try_to_capture
            graphs._try_to_capture = lambda *_: None
            expected = llm.generate(prompts, params, use_tqdm=False)
            graphs._try_to_capture = capture
            limit = torch.cuda.memory_reserved()  # what the allocator keeps is enough for the steps themselves
            torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
            for _ in range(2):
                outputs = llm.generate(prompts, params, use_tqdm=False)
                assert [one.outputs[0].token_ids for one in outputs] == [one.outputs[0].token_ids for one in expected]
            assert (graphs.captured, graphs.refused) == ({}, {(8, Sampling.GREEDY)})
            assert caplog.text.count("no memory to capture decodes of up to 8 requests") == 1
            torch.cuda.set_per_process_memory_fraction(1.0)
            llm.generate(prompts[:2], params, use_tqdm=False)
            assert set(graphs.captured) == {(2, Sampling.GREEDY)}
