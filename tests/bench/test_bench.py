"""`lightvllm bench` on a tiny model: the numbers are finite and agree with each other."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightvllm import LLM
from lightvllm.bench.host import measure_host_time
from lightvllm.bench.serving import Engine, compare
from lightvllm.bench.startup import measure_startup
from lightvllm.bench.transformers_baseline import TransformersBaseline
from lightvllm.bench.workload import Workload
from lightvllm.cli.main import main
from tests.cli.models import make_chat_model


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["bench", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _check_figures(figures: dict[str, Any], num_prompt_tokens: int, num_output_tokens: int) -> None:
    assert all(math.isfinite(value) and value > 0 for value in figures.values() if value is not None)
    assert figures["time_to_first_token"] <= figures["time_to_first_token_p99"] <= figures["seconds"]
    assert figures["output_tokens_per_s"] * figures["seconds"] == pytest.approx(num_output_tokens, rel=0.3)
    ratio = (num_prompt_tokens + num_output_tokens) / num_output_tokens
    assert figures["total_tokens_per_s"] / figures["output_tokens_per_s"] == pytest.approx(ratio, rel=0.3)


def test_throughput_against_transformers(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-prompts", 5, "--input-len", 12, "--output-len", 6, "--prefix-len", 16, "--repeats", 2]
    report = _run(capsys, "throughput", "--model", model, *sizes, "--against", "transformers")
    assert report["benchmark"] == "throughput"
    assert report["prompt_tokens"] == 5 * 28
    assert report["output_tokens"] == 5 * 6
    for name in ("lightvllm", "transformers"):
        assert len(report["runs"][name]) == 2
        for figures in (report[name], *report["runs"][name]):
            _check_figures(figures, 5 * 28, 5 * 6)
    for name, ratio in report["ratio"].items():
        ours, theirs = report["lightvllm"][name], report["transformers"][name]
        assert ratio == pytest.approx(ours / theirs if name.endswith("_per_s") else theirs / ours)
    assert report["num_same_outputs"] == 5  # float32, greedy: the same work was done
    assert report["dtype"] == "float32"
    assert report["memory"]["peak_bytes"] > 50 << 20
    # 28 prompt and 6 generated tokens take three blocks of 16 each; the first is the prefix, which all may share.
    assert 2 * 5 + 1 <= report["memory"]["peak_num_used_blocks"] <= 3 * 5
    assert 0 < report["memory"]["kv_cache_usage"] < 1
    assert 0 <= report["prefix_cache_hit_rate"] <= 4 * 16 / (5 * 28)


def test_latency_as_text_and_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latency.json"
    sizes = ["--batch-size", "2", "--input-len", "8", "--output-len", "4", "--repeats", "1"]
    assert main(["bench", "latency", "--model", str(model), *sizes, "--dtype", "bfloat16", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    report = json.loads(path.read_text())
    assert report["workload"]["num_requests"] == 2
    assert report["options"]["dtype"] == report["dtype"] == "bfloat16"
    _check_figures(report["lightvllm"], 16, 8)
    assert "ratio" not in report
    for label in ("time to first token", "inter-token latency", "total tokens/s", "peak memory", "KV cache in use"):
        assert label in text
    assert f"{report['lightvllm']['total_tokens_per_s']:.1f}" in text


def test_prefix(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-prompts", 6, "--prefix-len", 96, "--input-len", 4, "--repeats", 1]
    report = _run(capsys, "prefix", "--model", model, *sizes)
    assert report["cache_off"]["prefix_cache_hit_rate"] == 0
    assert report["cache_on"]["prefix_cache_hit_rate"] == pytest.approx(5 * 96 / 600)
    on, off = (report[name]["lightvllm"]["time_to_first_token"] for name in ("cache_on", "cache_off"))
    assert report["ratio"]["time_to_first_token"] == pytest.approx(off / on)


def test_each_run_starts_with_an_empty_prefix_cache(model: Path) -> None:
    workload = Workload(num_requests=1, input_len=64, output_len=2)
    with LLM(model, skip_tokenizer_init=True) as llm:
        prompts = workload.prompts(llm.model_config.vocab_size)
        runs = [Engine(llm).run(workload, prompts) for _ in range(2)]
    assert [run.num_cached_tokens for run in runs] == [0, 0]
    assert runs[0].token_ids == runs[1].token_ids


def test_a_workload_that_does_not_fit(model: Path) -> None:
    with LLM(model, skip_tokenizer_init=True, max_model_len=32) as llm:
        with pytest.raises(ValueError, match="max_model_len"):
            compare(llm, Workload(num_requests=1, input_len=40, output_len=2), repeats=1)
        with pytest.raises(ValueError, match="output_len: a request ended after"):
            compare(llm, Workload(num_requests=1, input_len=30, output_len=9), repeats=1)
        assert not llm.engine.has_unfinished_requests()


def test_transformers_runs_in_batches_no_wider_than_the_engine_s(model: Path) -> None:
    workload = Workload(num_requests=3, input_len=5, output_len=4)
    with LLM(model, skip_tokenizer_init=True, max_num_seqs=2) as llm:
        prompts = workload.prompts(llm.model_config.vocab_size)
        theirs = TransformersBaseline(llm).run(workload, prompts)
        ours = Engine(llm).run(workload, prompts)
    assert theirs.token_ids == ours.token_ids
    # The third waits for the first two, so it has its first token after their last.
    assert theirs.figures.time_to_first_token_p99 > theirs.figures.time_to_first_token


def test_end_of_sequence_tokens_do_not_end_a_run(tmp_path: Path) -> None:
    """Of either: every token of this model is one."""
    model = make_chat_model(tmp_path)
    every_token = json.dumps({"eos_token_id": list(range(300))})
    (tmp_path / "generation_config.json").write_text(every_token)
    workload = Workload(num_requests=2, input_len=5, output_len=4)
    with LLM(model) as llm:
        comparison = compare(llm, workload, repeats=1, against="transformers")
    assert comparison.num_same_outputs == 2


def test_host_time(model: Path, tmp_path: Path) -> None:
    with LLM(make_chat_model(tmp_path)) as llm:
        runner = llm.engine.core.executor.worker.runner
        before = runner.model
        host = measure_host_time(llm, num_requests=8, num_steps=5, input_len=20)
        assert runner.model is before
        assert "sample" not in vars(runner.sampler)
        assert not llm.engine.has_unfinished_requests()
        llm.engine.core.check_integrity()
    assert host.num_requests == 8
    assert 0 < host.sampling < host.outside < host.step
    assert 0 < host.model < host.step
    assert host.outside <= host.outside_p99


def test_host_time_of_more_requests_than_fit(model: Path) -> None:
    with LLM(model, skip_tokenizer_init=True, kv_cache_memory_bytes=1 << 20, max_model_len=64) as llm:
        with pytest.raises(ValueError, match="num_requests: only"):
            measure_host_time(llm, num_requests=64, num_steps=60, input_len=20)
        assert not llm.engine.has_unfinished_requests()


def test_startup(tmp_path: Path) -> None:
    startup = measure_startup(["--model", str(make_chat_model(tmp_path))], repeats=1)
    assert startup.import_torch > 0
    assert startup.import_torch * 0.5 < startup.first_token < 60
