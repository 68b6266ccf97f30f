"""Who runs when, and what happens when a contender fails; then the whole command on a tiny model, without peers."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightvllm.bench.compare import turns
from lightvllm.bench.compare.contenders import Peers, Start, contenders_of
from lightvllm.bench.compare.loads import QUICK_LOADS, Load, Timing
from lightvllm.bench.compare.process import ContenderError
from lightvllm.bench.compare.turns import Plan, compare_dtype, make_files
from lightvllm.bench.random_checkpoint import Shape
from lightvllm.cli import bench_compare
from lightvllm.cli.main import main

TINY = Shape(vocab_size=300, hidden_size=32, intermediate_size=48, layers=1, heads=4, kv_heads=2, head_dim=16)
A, B = Load(name="a", num_requests=1), Load(name="b", num_requests=2, context_len=4)


class Fake:
    """Runs nothing; fails where it is told to."""

    def __init__(self, name: str, keeps_context: bool = True, fails: tuple[str, ...] = ()) -> None:
        self.name, self.keeps_context, self.fails = name, keeps_context, fails
        self.ran: list[tuple[str, int]] = []
        self.is_closed = False

    def start(self) -> Start:
        if "start" in self.fails:
            raise ContenderError("cannot")
        return Start(1.0, "1")

    def run(self, load: Load, vocab_size: int, run: int) -> Timing:
        self.ran.append((load.name, run))
        if load.name in self.fails:
            raise ContenderError("broken")
        return Timing(1.0, 2.0, 3.0)

    def close(self) -> None:
        self.is_closed = True


def _plan(work: Path, **changes: Any) -> Plan:
    plan = Plan(shape=TINY, dtypes=("bf16",), loads=(A, B), repeats=3, threads=1, peers=Peers(), work=work)
    return replace(plan, **changes)


def test_turns_go_back_and_forth() -> None:
    x, y = Fake("x"), Fake("y", keeps_context=False)
    order = [(load.name, run, contender.name) for load, run, contender in turns.turns([x, y], (A, B), 3)]
    assert order[:6] == [("a", 0, "x"), ("a", 0, "y"), ("a", 1, "y"), ("a", 1, "x"), ("a", 2, "x"), ("a", 2, "y")]
    # y would compute the context again each time, so it has one run of it.
    assert order[6:] == [("b", 0, "x"), ("b", 0, "y"), ("b", 1, "x"), ("b", 2, "x")]


def test_a_failure_ends_that_load_or_that_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = [Fake("good"), Fake("half", fails=("a",)), Fake("bad", fails=("start",)), Fake("cold", fails=("warm-up",))]
    monkeypatch.setattr(turns, "contenders_of", lambda *_: (fakes, {"peer": "not given"}))
    results = {result.name: result for result in compare_dtype(_plan(tmp_path), "bf16")}
    assert {name: len(runs) for name, runs in results["good"].runs.items()} == {"a": 3, "b": 3}
    assert results["half"].failures == {"a": "broken"}
    assert {name: len(runs) for name, runs in results["half"].runs.items()} == {"b": 3}
    assert fakes[1].ran.count(("a", 1)) == 0
    assert results["bad"].failures == {"start": "cannot"}
    assert results["bad"].start is None
    assert results["cold"].failures == {"start": "broken"}
    assert fakes[3].ran == [("warm-up", 0)]
    assert results["peer"].failures == {"start": "not given"}
    assert all(fake.is_closed for fake in fakes)
    only = compare_dtype(_plan(tmp_path, contenders=frozenset({"good"})), "bf16")
    assert [result.name for result in only] == ["good"]


def test_who_has_which_number_type(tmp_path: Path) -> None:
    peers = Peers("v/python", "o/python", "t/python", tmp_path)
    names = {dtype: [c.name for c in contenders_of(dtype, peers, tmp_path, 2, 99)[0]] for dtype in turns.DTYPES}
    assert names["bf16"] == ["lightvllm", "vLLM", "transformers", "llama.cpp"]
    assert names["int8"] == ["lightvllm", "llama.cpp"]
    _, absent = contenders_of("int8", peers, tmp_path, 2, 99)
    assert absent == {"OpenVINO": "no Q8_0 file: llama-quantize makes it (--llama-bin)"}
    (tmp_path / "Q4_0.gguf").touch()
    given, _ = contenders_of("4-bit", peers, tmp_path, 2, 99)
    assert [contender.name for contender in given] == ["lightvllm", "OpenVINO", "llama.cpp"]
    _, absent = contenders_of("bf16", Peers(), tmp_path, 2, 99)
    assert absent["vLLM"] == "not given (--vllm-python)"
    assert set(absent) == {"vLLM", "transformers", "llama.cpp"}


def test_files_are_made_once(tmp_path: Path) -> None:
    plan = _plan(tmp_path)
    make_files(plan)
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    make_files(plan)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ContenderError, match="no llama-bench"):
        make_files(replace(plan, peers=Peers(llama_bin=tmp_path)))


def test_only_narrows_each_kind_by_itself(tmp_path: Path) -> None:
    plan = _plan(tmp_path, dtypes=turns.DTYPES, loads=QUICK_LOADS)
    narrowed = bench_compare.narrowed(plan, ["bf16", "vLLM", "mixed"])
    assert narrowed.dtypes == ("bf16",)
    assert [load.name for load in narrowed.loads] == ["mixed"]
    assert narrowed.contenders == {"vLLM"}
    narrowed = bench_compare.narrowed(plan, ["int8"])
    assert (narrowed.loads, narrowed.contenders) == (plan.loads, None)
    with pytest.raises(ValueError, match="--only: 'vLM' is unknown, did you mean vLLM"):
        bench_compare.narrowed(plan, ["vLM"])
    with pytest.raises(ValueError, match=r"--only: 'xyz' .*4-bit, "):
        bench_compare.narrowed(plan, ["xyz"])


@pytest.mark.parametrize("flags", [["--repeats", "0"], ["--threads", "0"], ["--only", "x"], ["--plot", "a.txt"]])
def test_wrong_flags_are_one_line(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", *flags]) == 1
    assert capsys.readouterr().err.startswith(f"error: {flags[0]}: ")


def test_the_command_without_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model: the engine's own process, the machine's limits, text and JSON."""
    plan_of = bench_compare.plan_of

    def tiny(args: argparse.Namespace, work: Path) -> Plan:
        return replace(plan_of(args, work), shape=TINY)

    monkeypatch.setattr(bench_compare, "plan_of", tiny)
    monkeypatch.setattr("lightvllm.bench.compare.contenders.SETTLE", 0.0)
    path = tmp_path / "out.json"
    flags = ["--quick", "--threads", "1", "--only", "bf16", "--work", str(tmp_path), "--json", str(path)]
    assert main(["bench", "compare", *flags]) == 0
    text, record = capsys.readouterr().out, json.loads(path.read_text())
    row = record["cells"]["bf16"]["lightvllm"]
    assert set(row) == {"prefill", "decode-1", "decode-8", "decode-32", "context", "mixed", "start"}
    assert all(cell["value"] > 0 for cell in row.values())
    assert record["limits"]["bfloat16"] > 1e9
    assert record["limits"]["memory"] > 1e8
    assert "vLLM: not given (--vllm-python)" in text
