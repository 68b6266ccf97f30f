"""`lightvllm learn`: a table for each simulator, a picture, JSON, and mistakes named by their flag."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightvllm.cli.learn import SIMULATORS
from lightvllm.cli.main import main

SECOND_STEPS = ["--step-ms", "1000", "--token-us", "0", "--context-token-us", "0"]
BATCHING = """\
A static batch runs until its longest request ends; the places of the others stand idle.
Continuous batching gives a place to the next request in the very next step.

3 requests, 12 prompt tokens, 5 output tokens; 2 at a time

continuous batching
  0 ##################
  1 ##################====================================
  2 ..................##################

static batching
  0 ##################xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
  1 ##################====================================
  2 ......................................................##################

    . waiting   x idle   = decode   # prefill

                           continuous      static
whole run                  3,000.0 ms  4,000.0 ms
output tokens/s                   1.7         1.2
time to first token, mean  1,333.3 ms  2,000.0 ms
latency, mean              2,000.0 ms  2,666.7 ms
latency, 99th percentile   3,000.0 ms  4,000.0 ms
places idle                     16.7%       37.5%
"""


@pytest.fixture
def load(tmp_path: Path) -> str:
    """Three requests, of 1, 3 and 1 tokens."""
    path = tmp_path / "load.jsonl"
    path.write_text("".join(f'{{"input_len": 4, "output_len": {length}}}\n' for length in (1, 3, 1)))
    return str(path)


def test_what_it_prints(load: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "batching", "--file", load, "--max-num-seqs", "2", *SECOND_STEPS]) == 0
    assert capsys.readouterr().out == BATCHING


@pytest.mark.parametrize("name", SIMULATORS)
def test_each_explains_draws_and_gives_json(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, record = tmp_path / "picture.png", tmp_path / "record.json"
    assert main(["learn", name, "--plot", str(picture), "--json", str(record)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(SIMULATORS[name][1] + "\n\n")
    assert len(out.splitlines()) > 5
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert json.loads(record.read_text())["benchmark"] == name


def test_json_has_the_figures(load: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", "batching", "--file", load, "--max-num-seqs", "2", *SECOND_STEPS, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["cost"] == {"fixed": 1.0, "per_token": 0.0, "per_context_token": 0.0}
    assert record["load"]["requests"][1] == {
        "arrival": 0.0,
        "input_len": 4,
        "output_len": 3,
        "prefix": None,
        "prefix_len": 0,
    }
    assert record["static"]["seconds"] == 4
    assert record["continuous"]["requests"][2]["token_times"] == [2.0]


def test_flags_reach_the_simulators(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--requests", "5", "--input-len", "7", "--output-len", "2-2", "--shared-prefix-len", "3", "--seed", "4"]
    assert main(["learn", "prefix", *words, "--rate", "inf", "--num-blocks", "9", "--block-size", "2"]) == 0
    assert "5 requests, 50 prompt tokens, 10 output tokens; 9 blocks of 2\n" in capsys.readouterr().out
    assert main(["learn", "preempt", *words, "--num-blocks", "20,3", "--block-size", "4"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["20", "3"]
    chunks = ["--max-num-batched-tokens", "64,32", "--long-prefill-token-threshold", "8", "--long-input-len", "50"]
    assert main(["learn", "chunked", *words, *chunks, "--long-arrival", "0.001"]) == 0
    out = capsys.readouterr().out
    assert "a prompt of 50 tokens comes in after 1.0 ms" in out
    assert [line.partition("  ")[0] for line in out.splitlines()[-3:]] == [
        "budget 64",
        "budget 32",
        "budget 64, threshold 8",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batching", "--requests", "0"], "--requests: 0 is out of range, expected at least 1"),
        (["batching", "--input-len", "9-3"], "input_len: (9, 3) is out of range"),
        (["batching", "--max-num-seqs", "0"], "max_num_seqs is 0, but must be at least 1"),
        (["batching", "--file", "/no/such/file"], "--file: cannot read '/no/such/file'"),
        (["batching", "--file", "x", "--rate", "3"], "--file: given together with --rate"),
        (["batching", "--step-ms", "0"], "--step-ms 0: fixed: 0 is out of range"),
        (["batching", "--plot", "a.txt"], "--plot: 'a.txt' is no .png, .svg or .pdf file"),
        (["batching", "--plot", "/no/such/a.png"], "--plot: there is no folder"),
        (["prefix", "--num-blocks", "1"], "num_blocks: 1 is out of range"),
        (["preempt", "--num-blocks", "100,1"], "num_blocks: 1 is out of range"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["learn", *words]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batchin"], "'batchin' is unknown, did you mean batching?"),
        (["batching", "--max-num-sequences", "3"], "unknown flag --max-num-sequences, did you mean --max-num-seqs?"),
        (["batching", "--input-len", "a-b"], "'a-b' is neither a length such as 20 nor a range"),
        (["chunked", "--max-num-batched-tokens", "8,x"], "'8,x' is not a list of integers such as 8192,512"),
    ],
)
def test_wrong_flags_are_refused_before_anything_runs(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["learn", *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_neither_torch_nor_matplotlib_is_loaded_for_a_table() -> None:
    program = "import sys; from lightvllm.cli.main import main\n"
    program += f"for name in {list(SIMULATORS)!r}: assert main(['learn', name]) == 0\n"
    program += "print(sorted({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.endswith("\n[]\n"), result.stderr
