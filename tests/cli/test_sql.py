"""`sql` and `demo`: what the model writes is shown and run, and what does not run is shown as such."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightvllm import LLM
from lightvllm.cli import demo
from lightvllm.cli.main import main
from lightvllm.outputs import CompletionOutput, RequestMetrics, RequestOutput
from lightvllm.sql import DEMO_QUESTIONS, build_demo_database


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sql") / "demo.sqlite"
    build_demo_database(path)
    return path


def _let_the_model_write(monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    """In place of what random weights would: what the verb does with a query is looked at here."""

    def write(*args: Any, **kwargs: Any) -> Iterator[RequestOutput]:
        for end in range(len(sql) + 1):
            yield RequestOutput("0", "", [1], outputs=[CompletionOutput(0, sql[:end], [])], metrics=RequestMetrics(0.0))

    monkeypatch.setattr("lightvllm.cli.sql.stream", write)


def test_a_query_and_its_rows(
    chat_model: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _let_the_model_write(monkeypatch, "SELECT name, founded FROM dairies ORDER BY founded")
    assert main(["sql", "--model", str(chat_model), "--db", str(database), "--max-rows", "2", "Oldest dairies?"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0] == "SELECT name, founded FROM dairies ORDER BY founded"
    assert any(re.search(r"Alpenhof\s*│\s*1887", line) for line in lines)
    assert not any("Roccabianca" in line for line in lines)
    assert any(re.search(r"\b7 \w+ rows", line) for line in lines)


@pytest.mark.parametrize("sql", ["SELEKT 1", "DELETE FROM dairies", "SELECT * FROM nowhere"])
def test_sql_that_does_not_run(
    sql: str, chat_model: Path, database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _let_the_model_write(monkeypatch, sql)
    assert main(["sql", "--model", str(chat_model), "--db", str(database), "Oldest dairies?"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(sql)
    assert "This SQL does not run: " in printed
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM dairies").fetchone() == (9,)


def test_what_the_model_really_writes_is_shown(
    chat_model: Path, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With random weights it is nothing that runs."""
    assert main(["sql", "--model", str(chat_model), "--db", str(database), "Oldest dairies?"]) == 1
    assert "This SQL does not run: " in capsys.readouterr().out


def test_demo(chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(demo.GREEDY, "max_tokens", 6)  # random weights never come to an end by themselves
    assert main(["demo", "--model", str(chat_model), "--dtype", "float32"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.strip().split("\n")
    for number, question in enumerate(DEMO_QUESTIONS, start=1):
        assert f"{number}. {question}" in lines
    figures = re.fullmatch(
        r"(\d+) requests, (\d+) prompt \+ (\d+) output tokens, time to first token ([\d.]+) s, (\d+) tokens/s, "
        r"(\d+) of (\d+) KV blocks used, prefix-cache hit rate (\d+)%",
        lines[-1],
    )
    assert figures is not None, lines[-1]
    requests, prompt, output, first, rate, used, blocks, hits = map(float, figures.groups())
    assert requests == len(DEMO_QUESTIONS)
    assert output == 6 * requests
    assert prompt > 300 * requests
    assert 0 < used < blocks
    assert used * 16 < prompt / 3  # the schema's blocks are shared
    assert hits > 80
    assert first > 0
    assert rate > 0


def test_demo_asks_what_it_is_told(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(demo.GREEDY, "max_tokens", 6)
    assert main(["demo", "--model", str(chat_model), "--ask", "Who?", "--ask", "Where?"]) == 0
    printed = capsys.readouterr().out
    assert "1. Who?" in printed
    assert "2. Where?" in printed
    assert "2 requests, " in printed
    assert DEMO_QUESTIONS[0] not in printed


def test_demo_figures_are_the_engine_s(chat_model: Path) -> None:
    with LLM(chat_model) as llm:
        outputs = llm.generate(["a", "bc"], use_tqdm=False)
        line = demo.figures_line(llm, outputs, seconds=2.0)
    num_prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    assert line.startswith(f"2 requests, {num_prompt_tokens} prompt + 32 output tokens, ")
    assert ", 16 tokens/s, " in line
