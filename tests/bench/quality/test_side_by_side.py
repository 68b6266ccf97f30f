"""All variants in turn, the table and the picture; the whole command on a tiny model."""

import json
from pathlib import Path

import pytest

from lightvllm.bench.quality import report
from lightvllm.bench.quality.plot import draw
from lightvllm.bench.quality.side_by_side import Outcome, Variant, measure_all
from lightvllm.bench.quality.windows import Window
from lightvllm.cli.main import main
from tests.e2e.checkpoint import Checkpoint

RESULT = {"weight_bytes": 2**20, "peak_bytes": 2**30, "output_tokens_per_s": 1234.5, "num_tokens": 9, "perplexity": 2.0,
          "divergence": None, "texts": []}  # fmt: skip
DIVERGENCE = {
    "num_tokens": 9,
    "perplexity_error": 0.012,
    "top_1": 0.995,
    "kl": 0.001,
    "logit_error": 0.02,
    "worst_logit_error": 0.3,
}


@pytest.fixture
def rows() -> list[report.Row]:
    worse = RESULT | {"perplexity": 2.1, "divergence": DIVERGENCE}
    return [
        report.row_of(Outcome(Variant("full", {}), 9 * 2**20, RESULT), 0.96),
        report.row_of(Outcome(Variant("int8", {}), 9 * 2**20, worse), 0.95),
        report.row_of(Outcome(Variant("w4", {}), 9 * 2**20, None, "out of luck"), None),
    ]


def test_the_table(rows: list[report.Row]) -> None:
    head, rule, full, int8, w4 = report.table(rows).splitlines()
    assert full.startswith("| full | 9.0 | 1.0 | 1,024.0 |")
    assert head.split(" | ")[5:8] == ["perplexity", "SQL right", "same top token"]
    assert rule.count("|") == head.count("|") == full.count("|") == w4.count("|")
    assert " | 2.0000 | 96.0 % |" in full
    assert " | 1,234 | 2.1000 (+5.00 ± 1.20 %) | 95.0 % (-1.0) | 99.50% | 0.00100 | 0.0200 | 0.300 |" in int8
    assert w4.startswith("| w4 | out of luck |")


def test_figures_that_nobody_has_are_left_out(rows: list[report.Row]) -> None:
    alone = [report.row_of(Outcome(Variant("full", {}), 1, RESULT), None)]
    assert [column.key for column in report.shown_columns(alone)] == [
        "disk_bytes", "weight_bytes", "peak_bytes", "output_tokens_per_s", "perplexity"]  # fmt: skip


def test_the_picture(rows: list[report.Row], tmp_path: Path) -> None:
    draw(rows, tmp_path / "quality.svg")
    picture = (tmp_path / "quality.svg").read_text()
    assert picture.count('<g id="axes_') == 10


def test_a_reference_that_fails_ends_it_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"full: model: .* has no config.json"):
        measure_all([Variant("full", {"model": str(tmp_path)})], [Window([1, 2], 1)], [], 300, tmp_path)


def test_the_command(text_checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the thing in the hand and the land. " * 20)
    words = ["eval", str(text_checkpoint.path), "--text", str(tmp_path / "text.txt"), "--length", "32"]
    words += ["--stride", "16", "--on-the-fly", "int8", "--json", str(tmp_path / "out.json"), "--limit", "100"]
    words += ["--kv-cache-memory-bytes", str(2**22), "--max-model-len", "200", "--plot", str(tmp_path / "out.png")]
    assert main(words) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    full, int8 = record["variants"]
    assert 80 <= record["num_tokens"] <= 100
    assert full["perplexity"] == pytest.approx(int8["perplexity"], rel=0.05)
    assert full["perplexity"] != int8["perplexity"]
    assert full["disk_bytes"] == (text_checkpoint.path / "model.safetensors").stat().st_size
    assert int8["weight_bytes"] < full["weight_bytes"]
    assert 0 < int8["kl"] < 0.1
    assert (tmp_path / "out.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "text: the perplexity is over a text"),
        (["--own-text", "--text", "x"], "text: given together with own_text"),
        (["--text", "/no/such/file"], "text: cannot read '/no/such/file'"),
        (["--text", "{text}", "--on-the-fly", "int9"], "on_the_fly: 'int9' is unknown, did you mean int8?"),
        (["--text", "{text}", "--schemes", "w4-gptqq"], "schemes: 'w4-gptqq' is unknown, did you mean w4-gptq?"),
        (["--text", "{text}", "--stride", "512"], "stride: 512 is out of range, expected 1 to 511, less than length"),
        (["--own-text", "--stride", "5"], "stride: only with text"),
        (["--length", "5"], "length: only with text or own_text"),
        (["--own-text", "--limit", "0"], "limit: 0 is out of range"),
        (["--own-text", "--plot", "x.gif"], "--plot: 'x.gif' is no .png"),
        (
            ["--text", "{text}", "--schemes", "w4-gptq"],
            "calibration: the scheme w4-gptq looks at what the layers compute",
        ),
    ],
)
def test_mistakes(
    text_checkpoint: Checkpoint, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("the land")
    words = [word.format(text=tmp_path / "text.txt") for word in words]
    assert main(["eval", str(text_checkpoint.path), *words]) == 1
    assert message in capsys.readouterr().err
