"""How the program ends: mistakes in one line, interrupts and broken pipes without a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightvllm import __version__
from lightvllm.cli.main import main

CLI = [sys.executable, "-m", "lightvllm.cli"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"lightvllm {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "hi", "--model", "/no/such/folder"], "model: no folder '/no/such/folder'"),
        (["generate", "hi", "--model", "{model}", "--block-size", "0"], "block_size: 0 is out of range"),
        (["generate", "hi", "--model", "{model}", "--temperature", "3"], "temperature is 3.0, but must be in [0, 2]"),
        (["generate", "hi", "--model", "{model}", "--logit-bias", '{"999": 1}'], "logit_bias has token id 999"),
        (["generate", "hi " * 3000, "--model", "{model}"], "must have at most"),
        (["generate", "hi", "--model", "{model}", "--logprobs", "1"], "logprobs: only shown with --json"),
        (["generate", "hi", "--model", "{model}", "--no-detokenize"], "detokenize: without text"),
        (["generate", "hi", "--file", "prompts.txt"], "prompts: given both"),
        (["generate", "--file", "/no/such/file"], "--file: cannot read '/no/such/file'"),
        (["chat", "--model", "/no/such/folder"], "model: no folder"),
        (["sql", "--db", "/no/such.sqlite", "how many?"], "db: no file '/no/such.sqlite'"),
        (["sql", "--db", "x", "how many?", "--max-rows", "0"], "max_rows: 0 is out of range"),
        (["demo", "--model", "/no/such/folder"], "model: no folder"),
        (["env", "--model", "/no/such/folder"], "model: no folder"),
        (["bench", "latency", "--model", "{model}", "--input-len", "0"], "input_len: 0 is out of range"),
        (["bench", "latency", "--model", "{model}", "--repeats", "0"], "repeats: 0 is out of range"),
        (
            ["bench", "host", "--model", "{model}", "--num-prompts", "257"],
            "257 is more than max_num_seqs",
        ),
        (
            [
                "bench",
                "latency",
                "--model",
                "{model}",
                "--hf-overrides",
                '{"rope_theta": 5}',
                "--against",
                "transformers",
            ],
            "hf_overrides: cannot be used with against",
        ),
        (["bench", "startup", "--model", "/no/such/folder", "--repeats", "1"], "no folder '/no/such/folder'"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, chat_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(chat_model) if word == "{model}" else word for word in words]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in printed.err


def test_debug_shows_where_it_happened(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no folder"):
        main(["generate", "hi", "--model", "/no/such/folder", "--debug"])


def test_an_interrupt_ends_with_130(chat_model: Path) -> None:
    command = [*CLI, "chat", "--model", str(chat_model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"KV cache" in process.stderr.readline()  # the model is there, and the program waits for a line
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)  # before its input ends, which would end it, too
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.strip() == b""
    assert b"Traceback" not in errors


def test_a_broken_pipe_ends_quietly(chat_model: Path) -> None:
    command = [*CLI, "generate", "--model", str(chat_model), "--max-tokens", "1500", "--ignore-eos", "Hello"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141
    assert [line for line in errors.splitlines() if not line.startswith(b"KV cache:")] == []
