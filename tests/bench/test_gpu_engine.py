"""`benchmarks/gpu_engine.py` without a GPU: its workload, its limits, its timelines, and all of it on a tiny model."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_engine
import gpu_engine_jobs
import gpu_engine_start
import gpu_timeline
import gpu_workload
import pytest
import torch
from gpu_engine_text import Target, least_prefill, least_step, timeline_text, weight_bytes, workload_text
from gpu_rates import Rates
from gpu_timeline import Work, summarize, works_of
from gpu_workload import Requests

from lightvllm.bench.job import run_job
from lightvllm.bench.random_checkpoint import QWEN3, Shape, write_config

RATES = Rates(copy=4e12, matrix=8e14)
TINY = Shape(
    vocab_size=12_000, hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1, max_position_embeddings=2048
)
OPTIONS = {"kv_cache_memory_bytes": 2**25, "max_model_len": 2048}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu_engine.Bench:
    """A run on the CPU, of models that are all tiny."""
    monkeypatch.setattr(gpu_engine, "QWEN3", dict.fromkeys(QWEN3, TINY))
    for name, value in {"BATCHES": [1, 2], "FEW_BATCHES": [1, 2], "CONTEXTS": [64], "PREFILLS": [32]}.items():
        monkeypatch.setattr(gpu_engine, name, value)
    monkeypatch.setattr(gpu_engine, "OUTPUT_LEN", 4)
    args = gpu_engine.parse_args(["--models", "0.6B"])
    args.device, args.options = "cpu", OPTIONS
    return gpu_engine.Bench(args, tmp_path, RATES, {"engines": {}, "failed": {}})


def test_it_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_engine.py"])
    with pytest.raises(SystemExit, match="no CUDA device is here"):
        gpu_engine.main()


class TestArguments:
    def test_all_parts_by_default(self) -> None:
        args = gpu_engine.parse_args([])
        assert args.only == ["decode", "growth", "sizes", "quantization", "timeline", "workload", "start"]
        assert (args.models, args.requests, args.options) == (["0.6B", "8B"], 256, {})

    def test_some(self) -> None:
        words = ["--only", "start", "--only", "decode", "--models", "8B", "--options", '{"attention_backend": "cuda"}']
        args = gpu_engine.parse_args(words)
        assert (args.only, args.models, args.options) == (["start", "decode"], ["8B"], {"attention_backend": "cuda"})

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--models", "0.6B,9B"], "models: '9B' is unknown, expected some of 0.6B, 1.7B, 4B, 8B"),
            (["--requests", "0"], "requests: 0 is out of range, expected at least 1"),
            (["--only", "everything"], "invalid choice: 'everything'"),
        ],
    )
    def test_mistakes(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            gpu_engine.parse_args(words)
        assert message in capsys.readouterr().err


class TestWorkload:
    def test_the_requests_are_nano_vllm_s(self) -> None:
        requests = Requests.draw(256)
        assert requests.num_output_tokens == 133_966  # as its README has it
        assert sum(map(len, requests.prompts)) == 142_827
        assert {len(requests.prompts), len(requests.output_lens)} == {256}
        lengths = [*map(len, requests.prompts), *requests.output_lens]
        assert min(lengths) >= 100
        assert max(lengths) <= 1024
        assert max(len(prompt) + more for prompt, more in zip(*vars(requests).values(), strict=True)) < 4096

    def test_others_are_others(self) -> None:
        assert Requests.draw(4) == Requests.draw(4)
        assert Requests.draw(4).prompts[0][:8] != Requests.draw(4, seed=1).prompts[0][:8]
        assert Requests.draw(20).short().output_lens == [16] * 8

    def test_the_engine_runs_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gpu_workload, "LENGTHS", (3, 9))
        write_config(tmp_path, TINY)
        run = gpu_workload.run_engine(tmp_path, 3, {"device": "cpu", **OPTIONS})
        assert run.output_tokens == Requests.draw(3).num_output_tokens
        assert run.first_seconds is not None
        assert run.is_done

    @pytest.mark.parametrize(("is_done", "words"), [(True, ""), (False, "more than ")])
    def test_one_that_was_ended_is_slower_than_what_is_shown(self, is_done: bool, words: str) -> None:
        ours = gpu_workload.Run(2.0, 1000, 3.0, "lightvllm")
        theirs = gpu_workload.Run(20.0, 1000, None, "transformers", is_done)
        lines = workload_text("4 requests", asdict(ours), asdict(theirs)).splitlines()
        assert lines[0] == "4 requests, 1,000 output tokens"
        assert lines[1].endswith(" 2.0 s, 500 output tokens/s (a first run of others: 3.0 s)")
        assert lines[2].endswith(f" {words}20.0 s, {words and 'less than '}50 output tokens/s")
        assert lines[3] == f"  {words}10.0 times as fast"

    def test_transformers_gets_each_request_s_length_and_is_ended_in_time(self) -> None:
        class Batching:
            """In the place of a model and of its manager: a request is done as soon as it is asked for."""

            def __init__(self, answers: int) -> None:
                self.answers, self.lengths, self.stopped = answers, [], False

            @contextmanager
            def continuous_batching_context_manager(self, **_: object) -> Iterator[Any]:
                yield self

            def add_request(self, prompt: list[int], max_new_tokens: int, eos_token_id: int) -> None:
                assert eos_token_id == -1
                self.lengths.append(max_new_tokens)

            def get_result(self, timeout: float) -> Any:
                self.answers -= 1
                if self.answers < 0:
                    return None
                tokens = [0] * self.lengths[self.answers]
                return SimpleNamespace(is_finished=lambda: True, error=None, generated_tokens=tokens)

            def is_running(self) -> bool:
                return True

            def stop(self, hard_stop: bool) -> None:
                self.stopped = hard_stop

        requests = Requests.draw(3)
        seconds, found = gpu_workload._generate(Batching(3), requests, limit=60)
        assert (seconds < 1, found) == (True, requests.num_output_tokens)
        slow = Batching(2)
        seconds, found = gpu_workload._generate(slow, requests, limit=0.01)
        assert (0.01 < seconds < 1, found) == (True, None)
        assert slow.stopped


class TestLimits:
    def test_bytes_of_weights(self) -> None:
        layers = 36 * (4096 * 128 * 80 + 3 * 4096 * 12_288)
        head = 151_936 * 4096
        assert weight_bytes(QWEN3["8B"], "bf16") == 2 * (layers + head)
        assert weight_bytes(QWEN3["8B"], "int8") == layers + head
        assert weight_bytes(QWEN3["8B"], "w4") == layers / 2 + head

    def test_a_step_of_one_is_the_weights(self) -> None:
        cache = 2 * 36 * 8 * 128 * 2
        expected = (weight_bytes(QWEN3["8B"], "bf16") + 100 * cache) / RATES.copy
        assert least_step(QWEN3["8B"], "bf16", 1, 100, RATES) == pytest.approx(expected)

    def test_a_long_prompt_is_its_operations(self) -> None:
        shape, length = QWEN3["8B"], 4096
        pairs = length * (length + 1) / 2
        operations = 2 * length * shape.layer_parameters + 4 * 36 * 32 * 128 * pairs + 2 * shape.head_parameters
        assert least_prefill(shape, "bf16", length, RATES) == pytest.approx(operations / RATES.matrix)

    def test_targets(self) -> None:
        assert Target("a", 0.86, 0.85, ".0%").is_met
        assert not Target("a", 0.84, 0.85, ".0%").is_met
        assert Target("a", 7.9, 8, ".1f", is_limit=True).is_met
        assert str(Target("a", 8.1, 8, ".1f", is_limit=True)).split() == ["MISSED", "a", "8.1", "(<=", "8.0)"]


class TestTimeline:
    def test_waits_and_kernels(self) -> None:
        """Two kernels overlap; then there is a wait of 2 us, as in a graph, and one of 10 us, for the host."""
        times = [("a", 0, 40), ("b", 30, 18), ("a", 50, 30), ("c", 90, 10)]
        timeline = summarize([Work(name, start / 1e6, seconds / 1e6) for name, start, seconds in reversed(times)])
        assert timeline.seconds == pytest.approx(100e-6)
        assert timeline.idle == pytest.approx(0.12)
        assert timeline.host_gap == pytest.approx(0.10)
        assert timeline.kernels == pytest.approx({"a": 70 / 98, "b": 18 / 98, "c": 10 / 98})
        assert list(timeline.kernels) == ["a", "b", "c"]
        text = timeline_text("decode", json.loads(json.dumps(vars(timeline))))
        assert "idle 12.0% of the time, 10.0% of the time in waits for the host" in text
        assert "71.4%  a" in text

    def test_only_what_ran_on_the_gpu_counts(self) -> None:
        events = [
            {"cat": "kernel", "name": "void rms_norm<float>(int)", "ts": 5.0, "dur": 2.0},
            {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 8.0, "dur": 1.0},
            {"cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": 1.0, "dur": 20.0},
            {"name": "process_name"},
        ]
        works = works_of({"traceEvents": events})
        assert [(work.name, pytest.approx(work.start * 1e6)) for work in works] == [("rms_norm", 5), ("Memcpy HtoD", 8)]

    def test_nothing_ran(self) -> None:
        with pytest.raises(ValueError, match="no work on the GPU"):
            summarize([])

    def test_names(self) -> None:
        wrapped = "void at::native::elementwise_kernel<4, at::native::CUDAFunctor_add<float>>(int)"
        assert gpu_timeline.short_name(wrapped) == "at::native::elementwise_kernel CUDAFunctor_add"
        ours = "void lightvllm::cuda::(anonymous namespace)::rms_norm<(lightvllm::cuda::Type)2, 4>(float const*, int)"
        assert gpu_timeline.short_name(ours) == "lightvllm::cuda::rms_norm"
        assert gpu_timeline.short_name("_paged_decode") == "_paged_decode"


class TestEngine:
    def test_parts_on_a_tiny_model(
        self, bench: gpu_engine.Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run_here(module: str, job: dict[str, Any], work: Path, cwd: Path, timeout: float) -> dict[str, Any]:
            """Without the seconds that a process takes to import torch."""
            assert (module, work, cwd.name) == ("gpu_engine_jobs", bench.work, "benchmarks")
            return json.loads(json.dumps(asdict(gpu_engine_jobs.measure(gpu_engine_jobs.Job(**job)))))

        monkeypatch.setattr(gpu_engine, "run_job", run_here)
        bench.args.only, bench.args.json = ["decode", "growth", "quantization"], bench.work / "figures.json"
        gpu_engine.run(bench)
        text = capsys.readouterr().out
        assert "failed" not in text
        for words in ("0.6B bf16", "0.6B int8", "0.6B w4", "one request\n", "decode of one request, 0.6B"):
            assert words in text
        record = json.loads(bench.args.json.read_text())
        assert set(record["engines"]) == {"0.6B", "0.6B int8", "0.6B w4"}
        engine = record["engines"]["0.6B"]
        assert (list(engine["steps"]), list(engine["prefills"])) == (["1", "2"], ["32", "64"])
        seconds = [engine["load"], engine["token"], *engine["steps"].values(), *engine["context_steps"].values()]
        assert all(value > 0 for value in seconds)
        assert record["targets"][0]["value"] == pytest.approx(weight_bytes(TINY, "bf16") / RATES.copy / engine["token"])

    def test_one_that_fails_leaves_the_others(
        self, bench: gpu_engine.Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def job(self: Any, kind: str, model: str, seconds: float, **arguments: Any) -> dict[str, Any]:
            asked.append(arguments["options"])
            if arguments["options"]:
                raise ValueError("no such kernel")
            return {"load": 1.0, "token": 1e-3, "steps": {"1": 1e-3}, "prefills": {"32": 1e-3}, "context_steps": {}}

        asked: list[dict[str, str]] = []
        monkeypatch.setattr(gpu_engine.Bench, "job", job)
        bench.args.only, bench.args.json = ["quantization", "decode", "quantization"], None
        gpu_engine.run(bench)
        text = capsys.readouterr().out
        assert "0.6B bf16 " in text
        assert text.count("failed: 0.6B int8: no such kernel") == 2
        assert asked == [{}, {"quantization": "int8"}, {"quantization": "w4"}]  # each once

    def test_start(self, bench: gpu_engine.Bench) -> None:
        folder = bench.work / "checkpoint"
        job = gpu_engine_jobs.Job("checkpoint", str(folder), arguments={"shape": vars(TINY), "device": "cpu"})
        assert (
            gpu_engine_jobs.measure(job).value == TINY.layer_parameters + TINY.head_parameters + 2 * 2 * (32 + 128) + 32
        )
        options = OPTIONS | {"device": "cpu", "skip_tokenizer_init": True}
        times = gpu_engine_start.measure_start(folder, options, repeats=1, timeout=60)
        names = ["import_torch", "load", "first_token", "second_token"]
        assert [times[name] for name in names] == sorted(times[name] for name in names)
        assert times["import_torch"] > 0
        assert times["cold"] > 0

    def test_a_job_in_its_own_process_fails_in_words(self, bench: gpu_engine.Bench) -> None:
        bench.args.options = {"kv_cache_dtype": "float3"}
        with pytest.raises(ValueError, match="kv_cache_dtype: 'float3' is not supported"):
            bench.job("workload", "0.6B", 60, count=1)

    def test_more_requests_than_run_at_a_time(self, tmp_path: Path) -> None:
        write_config(tmp_path, TINY)
        job = gpu_engine_jobs.Job("engine", str(tmp_path), OPTIONS | {"device": "cpu", "max_num_seqs": 2})
        loads: dict[str, Any] = {"batches": [3], "contexts": [], "prefills": [], "timelines": [], "output_len": 4}
        with pytest.raises(ValueError, match="only 2 of 3 requests of 128 tokens run at a time"):
            gpu_engine_jobs.measure_engine(job, **loads)


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ValueError, match=r"sleeper: no result after 0\.5 s"):
        run_job("sleeper", {}, tmp_path, cwd=tmp_path, timeout=0.5)


def test_every_part_has_its_line_in_the_help() -> None:
    assert isinstance(gpu_engine.parse_args([]), argparse.Namespace)
    for part in gpu_engine.PARTS:
        assert f"\n    {part} " in (gpu_engine.__doc__ or "")
