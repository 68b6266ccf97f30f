"""`env` tells what is there."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

from lightvllm import LLM, __version__, kernels
from lightvllm.cli.main import main
from lightvllm.kernels.isa import available_isas, use_isa


def test_json(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json", "--model", str(chat_model)]) == 0
    machine = json.loads(capsys.readouterr().out)
    assert machine["versions"]["lightvllm"] == __version__
    assert machine["versions"]["torch"] == importlib.metadata.version("torch")
    assert machine["cpu"]["threads"] == torch.get_num_threads()
    assert len(machine["gpus"]) == torch.cuda.device_count()
    assert 0 < machine["memory"]["available"] < machine["memory"]["total"]
    for dtype in ("float32", "bfloat16", "float16"):
        assert machine["linear"]["cpu"][dtype].startswith("packed") == kernels.has_fast_linear(
            torch.device("cpu"), getattr(torch, dtype)
        )


def test_the_attention_named_is_the_one_used(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json", "--model", str(chat_model)]) == 0
    machine = json.loads(capsys.readouterr().out)
    with LLM(chat_model, device="cpu") as llm:
        backend = llm.engine.core.executor.worker.runner.backend
    assert machine["attention"]["cpu"]["auto"] == backend.__name__
    assert "NVIDIA GPUs" in machine["attention"]["cpu"]["triton"]  # why it cannot run here


def test_text(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--model", str(chat_model)]) == 0
    text = capsys.readouterr().out
    for word in (__version__, "python", "processor", "memory", "cpu attention", "cpu bfloat16"):
        assert word in text


@pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")
def test_the_kernels_in_use(chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = available_isas()[-1]
    try:
        for name in (best, "plain"):
            use_isa(name)
            assert main(["env", "--json", "--model", str(chat_model)]) == 0
            assert json.loads(capsys.readouterr().out)["cpu_kernels"] == {
                "compiled": True,
                "isa": name,
                "best_isa": best,
            }
        assert main(["env"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CPU kernels")]
        assert "compiled, plain (the processor has " in line
    finally:
        use_isa("auto")


def test_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("lightvllm.kernels", "lightvllm.kernels.isa"):
        monkeypatch.setattr(f"{module}.COMPILED", False)
    assert main(["env"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CPU kernels")]
    assert line.endswith("reference: not built")
