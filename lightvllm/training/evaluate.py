"""Execution accuracy: does the model's SQL give the rows the reference gives?

Rows are compared as a multiset, in order where the reference orders them; column names and the SQL's text do not count.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightvllm.sql import build_messages, extract_sql, run_query
from lightvllm.sql.prompt import Message
from lightvllm.training.generator import Sample, make_sample

# A list of chats in, the text that answers each out.
Generate = Callable[[Sequence[list[Message]]], list[str]]


@dataclass
class Outcome:
    """One question, what was expected and what the model wrote; `error` is SQLite's where its SQL does not run."""

    split: str
    kind: str
    question: str
    expected: str
    written: str
    correct: bool
    error: str | None


def evaluate(generate: Generate, split: str, seed: int, num_samples: int, num_pairs: int) -> list[Outcome]:
    """Asks every question of the split's first `num_samples` databases and compares the rows."""
    samples = [make_sample(split, seed, index, num_pairs) for index in range(num_samples)]
    outcomes = judge(split, samples, generate(chats_of(samples)))
    for sample in samples:
        sample.connection.close()
    return outcomes


def chats_of(samples: Sequence[Sample]) -> list[list[Message]]:
    """The messages that ask each question, in order."""
    return [build_messages(sample.schema, pair.question) for sample in samples for pair in sample.pairs]


def judge(split: str, samples: Sequence[Sample], texts: Sequence[str]) -> list[Outcome]:
    """Compares the rows. texts: what was answered to each of `chats_of(samples)`."""
    outcomes = []
    questions = [(sample, pair) for sample in samples for pair in sample.pairs]
    for (sample, pair), text in zip(questions, texts, strict=True):
        written = extract_sql(text)
        correct, error = same_rows(sample.connection, pair.sql, written)
        outcomes.append(Outcome(split, pair.kind, pair.question, pair.sql, written, correct, error))
    return outcomes


def same_rows(connection: sqlite3.Connection, expected: str, written: str) -> tuple[bool, str | None]:
    """(whether both give the same rows, the error of the written SQL if it has one)."""
    reference = run_query(connection, expected)
    assert reference.error is None, (expected, reference.error)
    result = run_query(connection, written)
    if result.error is not None:
        return False, result.error
    wanted, found = [_comparable(row) for row in reference.rows], [_comparable(row) for row in result.rows]
    if "ORDER BY" in expected:
        return wanted == found, None
    return Counter(wanted) == Counter(found), None


def _comparable(row: tuple) -> tuple:
    """Sums of floats in another order differ in the last digits."""
    return tuple(f"{value:.9g}" if isinstance(value, float) else value for value in row)


def accuracy_table(outcomes: list[Outcome]) -> str:
    """Accuracy by query kind and split, as a Markdown table."""
    splits = list(dict.fromkeys(outcome.split for outcome in outcomes))
    cells: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for outcome in outcomes:
        cells[outcome.kind, outcome.split].append(outcome.correct)
        cells["all", outcome.split].append(outcome.correct)
    kinds = ["all", *sorted({outcome.kind for outcome in outcomes})]
    lines = ["| query kind | " + " | ".join(splits) + " |", "| --- |" + " ---: |" * len(splits)]
    lines += [f"| {kind} | " + " | ".join(_cell(cells[kind, split]) for split in splits) + " |" for kind in kinds]
    return "\n".join(lines)


def _cell(results: list[bool]) -> str:
    return f"{100 * sum(results) / len(results):.1f} % of {len(results)}" if results else "-"


def write_report(outcomes: list[Outcome], file: Path) -> None:
    """Totals and every outcome as JSON."""
    splits = list(dict.fromkeys(outcome.split for outcome in outcomes))
    totals = {}
    for split in splits:
        mine = [outcome for outcome in outcomes if outcome.split == split]
        totals[split] = {"questions": len(mine), "accuracy": sum(o.correct for o in mine) / len(mine),
                         "does_not_run": sum(o.error is not None for o in mine)}  # fmt: skip
    report = {"totals": totals, "outcomes": [asdict(outcome) for outcome in outcomes]}
    file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
