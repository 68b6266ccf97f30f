"""`lightvllm quantize`: what it prints, and where it finds what to calibrate with."""

import json
from pathlib import Path

import pytest

from lightvllm.cli.main import main
from lightvllm.cli.quantize import calibration
from lightvllm.config import DEFAULT_MODEL
from tests.e2e.checkpoint import Checkpoint


def test_it_writes_and_reports(text_checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("the thing in the hand and the land. " * 20)
    words = ["quantize", str(text_checkpoint.path), str(tmp_path / "out"), "--scheme", "w4-gptq", "--group-size", "32"]
    words += ["--calibration", str(tmp_path / "text.txt"), "--samples", "4", "--length", "40"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "error of each layer's outputs for 160 tokens, in %" in printed
    assert f"{tmp_path / 'out'} is written, with quantization_report.json" in printed
    report = json.loads((tmp_path / "out" / "quantization_report.json").read_text())
    assert (report["scheme"], report["calibration_tokens"], len(report["layers"])) == ("w4-gptq", 160, 21)
    assert main(words) == 1
    assert "is there already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scheme", "w4-gptq"], "calibration: the scheme w4-gptq looks at what the layers compute; give a text file"),
        (["--scheme", "w8a8", "--calibration", "/no/such/file"], "calibration: cannot read '/no/such/file'"),
        (["--scheme", "w8a8", "--samples", "0"], "samples: 0 is out of range"),
        (["--scheme", "w4-rtn", "--group-size", "7"], "group_size: 7 is not supported"),
    ],
)
def test_mistakes(
    text_checkpoint: Checkpoint, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(text_checkpoint.path), str(tmp_path / "out"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_stretches_are_spread_over_the_text(text_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(chr(ord("A") + i // 10) for i in range(260)))
    stretches = calibration(text_checkpoint.path, "w8a8", str(tmp_path / "text.txt"), samples=4, length=5)
    assert [ids for ids in stretches if len(ids) != 5] == []
    assert [ids[0] - ord("A") for ids in stretches] == [0, 6, 13, 19]
    everything = calibration(text_checkpoint.path, "w8a8", str(tmp_path / "text.txt"), samples=4, length=1000)
    assert [len(ids) for ids in everything] == [260]


def test_the_default_model_has_questions_of_its_own() -> None:
    """Schemas, questions and answers, as the chat template writes them."""
    from lightvllm.engine.tokenizer import Tokenizer

    sequences = calibration(DEFAULT_MODEL, "w4-gptq", None, samples=5, length=512)
    assert len(sequences) == 5
    text = Tokenizer.from_pretrained(DEFAULT_MODEL).decode(sequences[0], skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\n")
    assert "<|im_start|>assistant\nSELECT " in text
    assert text.endswith("<|im_end|>")
    assert [len(ids) for ids in calibration(DEFAULT_MODEL, "w4-gptq", None, samples=5, length=20)] == [20] * 5
