"""`lightvllm bench steps` on a tiny model: every step gives the same tokens, and its figures are what ran."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from lightvllm import kernels
from lightvllm.bench.compare.loads import Load
from lightvllm.bench.steps import STEPS, Outcome, _link_without_library, draw_steps, measure_steps, steps_text
from lightvllm.bench.steps_process import Job, Run, runner_of
from lightvllm.cli.main import main

NEEDS_KERNELS = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")
LOAD = Load(name="steps", num_requests=5, input_lens=(3, 20), output_lens=(4, 9), context_len=40)
WORDS = ["--num-prompts", "5", "--input-len", "3-20", "--output-len", "4-9", "--prefix-len", "40"]
BLOCK_SIZE = 16
MAX_MODEL_LEN = 128


@pytest.fixture(scope="module")
def runs(model: Path) -> dict[str, Run]:
    """What each step gives, here all in this process and with the kernels there are."""
    prompts, output_lens = LOAD.draw(300, 0)
    found = {}
    for step in STEPS:
        common = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "repeats": 1, "has_kernels": step.has_kernels}
        job = Job(str(model), loop=step.loop, options=step.options, prompts=prompts, output_lens=output_lens, **common)  # type: ignore[arg-type]
        found[step.name] = runner_of(job).run(prompts, output_lens)
    return found


def test_all_steps_give_the_same_tokens(runs: dict[str, Run], model: Path) -> None:
    prompts, output_lens = LOAD.draw(300, 0)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    expected = [
        oracle.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()
        for prompt, count in zip(prompts, output_lens, strict=True)
    ]
    for step in STEPS:
        if not step.rounds:
            assert runs[step.name].token_ids == expected, step.name
    assert [len(tokens) for tokens in runs["int8"].token_ids] == output_lens


def test_times_agree_with_each_other(runs: dict[str, Run]) -> None:
    for run in runs.values():
        for first, last in zip(run.first_token_times, run.latencies, strict=True):
            assert 0 < first < last <= run.seconds
    # One at a time, each waits for those before it; all at once, none does.
    for name in ("naive", "kv-cache", "paged"):
        assert all(
            last < first for last, first in zip(runs[name].latencies, runs[name].first_token_times[1:], strict=False)
        )
    assert max(runs["batching"].first_token_times) < min(runs["batching"].latencies)


def test_the_use_of_the_cache_is_what_the_lengths_say(runs: dict[str, Run]) -> None:
    prompts, output_lens = LOAD.draw(300, 0)
    # The tokens in the cache after each step of each request.
    lens = [len(prompt) + i for prompt, count in zip(prompts, output_lens, strict=True) for i in range(count)]
    in_blocks = sum(-(-length // BLOCK_SIZE) * BLOCK_SIZE for length in lens)
    assert runs["naive"].reserved_tokens == runs["naive"].used_tokens == 0
    assert [run.used_tokens for run in runs.values()][1:] == [sum(lens)] * 6
    assert runs["kv-cache"].reserved_tokens == MAX_MODEL_LEN * len(lens)
    assert runs["paged"].reserved_tokens == runs["batching"].reserved_tokens == in_blocks
    # Of the 40 tokens that all begin with, the two full blocks are there once, as long as any request is.
    shared = 2 * BLOCK_SIZE
    assert runs["prefix-cache"].reserved_tokens == in_blocks - shared * (len(lens) - max(output_lens))


@NEEDS_KERNELS
def test_the_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step without the compiled library and one with it."""
    words = [*WORDS, "--model", str(model), "--max-model-len", "128", "--only", "paged,kernels"]
    files = ["--json", str(tmp_path / "steps.json"), "--plot", str(tmp_path / "steps.png")]
    assert main(["bench", "steps", *words, *files]) == 0
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "steps.json").read_text())
    assert record["workload"] == {
        "num_requests": 5,
        "prefix_len": 40,
        "input_lens": [3, 20],
        "output_lens": [4, 9],
        "max_model_len": 128,
        "repeats": 1,
    }
    text = capsys.readouterr().out
    for step in record["steps"]:
        assert step["num_same"] == 5
        assert 0 < step["time_to_first_token"] < step["latency"] <= step["latency_p99"]
        assert step["peak_bytes"] > 50 << 20
        assert step["kv_usage"] > 0.5
        assert step["what_runs"] in text
        assert f"{step['output_tokens_per_s']:,.1f}" in text
    assert [step["name"] for step in record["steps"]] == ["paged", "kernels"]


def test_the_package_without_its_library(tmp_path: Path) -> None:
    package = Path(kernels.__file__).parent.parent
    _link_without_library(tmp_path / "linked")
    ours = {path.relative_to(package) for path in package.rglob("*.py")}
    links = tmp_path / "linked" / "lightvllm"
    assert not list(links.glob("kernels/_cpu*"))
    assert all((links / path).is_file() for path in ours)
    assert (links / "kernels" / "reference.py").is_file()


def test_a_step_that_fails_says_why(model: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(ValueError, match=r"naive: model: .* has no \*\.safetensors file"):
        measure_steps(STEPS[:1], broken, 300, LOAD, 128, 1, tmp_path / "work")


def test_no_step_runs_where_one_cannot(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that were never built are found missing before the slow steps, not after."""
    monkeypatch.setattr("lightvllm.bench.steps.LIBRARY", "_none*.so")
    with pytest.raises(ValueError, match="steps: kernels and int8 cannot run"):
        measure_steps(STEPS, model, 300, LOAD, 128, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def outcomes() -> list[Outcome]:
    return [
        Outcome(step, 20.0 / i, 40.0 / i, 10.0 / i, 12.5 * i, 2**29, 0.5 if i > 1 else None, 5)
        for i, step in enumerate(STEPS, start=1)
    ]


def test_the_table() -> None:
    lines = steps_text(outcomes(), 5).splitlines()
    assert " ".join(lines[1].split()) == "naive loop 20.00 s 40.00 s 10.00 s 12.5 512 MiB - 5 of 5"
    assert " ".join(lines[2].split()).endswith("512 MiB 50% 5 of 5")
    assert lines[7].endswith("5 of 5 (rounded)")
    assert lines[-5].split("  ")[-1].strip() == (
        "LLM(max_num_seqs=1, enable_prefix_caching=False, attention_backend='sdpa'), PyTorch operations"
    )
    assert lines[-2].endswith("LLM(), compiled kernels")


def test_the_picture(tmp_path: Path) -> None:
    draw_steps(outcomes(), tmp_path / "steps.svg")
    assert (tmp_path / "steps.svg").read_text().count('<g id="axes_') == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-prompts", "0"], "--num-prompts: 0 is out of range"),
        (["--prefix-len", "-1"], "--prefix-len: -1 is out of range"),
        (["--input-len", "9-8"], "--input-len: 9-8 is out of range"),
        (["--output-len", "0"], "--output-len: 0-0 is out of range"),
        (["--repeats", "0"], "--repeats: 0 is out of range"),
        (["--only", "naive,kernel"], "--only: 'kernel' is unknown, did you mean kernels?"),
        (["--max-model-len", "200"], "max_model_len: 200 is too small for requests of up to 240 tokens"),
        (["--plot", "steps.gif"], "--plot: 'steps.gif' is no .png"),
        (["--model", "/no/such/folder"], "model: no folder '/no/such/folder'"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "steps", *words]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {message}")
    assert printed.err.count("\n") == 1
