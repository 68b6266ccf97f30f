"""The comparison's figures: the median of each, the best peer's, and how near each comes to what the machine allows."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightvllm.bench.compare.limits import Bound, Limits, decode_bound, prefill_bound
from lightvllm.bench.compare.loads import Load, Timing, decode_rate, output_rate, prefill_rate
from lightvllm.bench.compare.turns import Plan, Result
from lightvllm.bench.random_checkpoint import Shape

OURS = "lightvllm"
Rate = Callable[[Load, Timing], float]
BoundOf = Callable[[Limits, Shape, str, Load], Bound]


@dataclass(frozen=True)
class Column:
    """A figure that all contenders have.

    Attributes:
        load: the one that it is taken from; None for the start.
        rate: what it is of a run of that load.
        bound: the machine's, where one is known.
    """

    key: str
    header: str
    load: str | None
    rate: Rate | None = None
    bound: BoundOf | None = None

    @property
    def is_rate(self) -> bool:
        """Of rates the larger is the better, of times the smaller."""
        return self.rate is not None


COLUMNS = (
    Column("prefill", "prefill", "decode-8", prefill_rate, prefill_bound),
    Column("decode-1", "decode 1", "decode-1", decode_rate, decode_bound),
    Column("decode-8", "decode 8", "decode-8", decode_rate, decode_bound),
    Column("decode-32", "decode 32", "decode-32", decode_rate, decode_bound),
    Column("context", "8 in context", "context", decode_rate, decode_bound),
    Column("mixed", "mixed load", "mixed", output_rate),
    Column("start", "start, s", None),
)


@dataclass(frozen=True)
class Cell:
    """One figure of one contender.

    Attributes:
        value: tokens a second, or seconds; the median of `runs`. None if it failed, for this reason.
        of_bound: the fraction of the machine's bound that it reaches, and whose that is: "memory" or "arithmetic".
        against_best: on our own row, how many times better it is than the best peer's, and that peer's name.
    """

    value: float | None
    runs: tuple[float, ...] = ()
    reason: str | None = None
    of_bound: tuple[float, str] | None = None
    against_best: tuple[float, str] | None = None


def cells(plan: Plan, limits: Limits, results: Sequence[Result]) -> dict[str, dict[str, dict[str, Cell]]]:
    """Number type -> contender -> column -> cell."""
    loads = {load.name: load for load in plan.loads}
    columns = [column for column in COLUMNS if column.load is None or column.load in loads]
    table: dict[str, dict[str, dict[str, Cell]]] = {}
    for result in results:
        row = {column.key: _cell(column, loads, plan.shape, limits, result) for column in columns}
        table.setdefault(result.dtype, {})[result.name] = row
    for rows in table.values():
        for column in columns:
            if OURS in rows:
                rows[OURS][column.key] = _against_best(column, rows)
    return table


def _cell(column: Column, loads: dict[str, Load], shape: Shape, limits: Limits, result: Result) -> Cell:
    if column.load is None or column.rate is None:
        if result.start is None:
            return Cell(None, reason=result.failures.get("start"))
        return Cell(result.start.seconds, (result.start.seconds,))
    load = loads[column.load]
    if load.name not in result.runs:
        return Cell(None, reason=result.failures.get(load.name) or result.failures.get("start"))
    runs = tuple(column.rate(load, timing) for timing in result.runs[load.name])
    value = statistics.median(runs)
    bound = column.bound(limits, shape, result.dtype, load) if column.bound else None
    return Cell(value, runs, of_bound=(value / bound.rate, bound.by) if bound else None)


def _against_best(column: Column, rows: dict[str, dict[str, Cell]]) -> Cell:
    ours = rows[OURS][column.key]
    peers = {name: row[column.key].value for name, row in rows.items() if name != OURS}
    values = {name: value for name, value in peers.items() if value is not None}
    if ours.value is None or not values:
        return ours
    best = (max if column.is_rate else min)(values, key=values.__getitem__)
    ratio = ours.value / values[best] if column.is_rate else values[best] / ours.value
    return dataclasses.replace(ours, against_best=(ratio, best))


def record(plan: Plan, limits: Limits, results: Sequence[Result]) -> dict[str, Any]:
    """Everything, as JSON has it."""
    return {
        "limits": dataclasses.asdict(limits),
        "shape": dataclasses.asdict(plan.shape),
        "threads": plan.threads,
        "repeats": plan.repeats,
        "loads": {load.name: dataclasses.asdict(load) for load in plan.loads},
        "cells": {
            dtype: {name: {key: dataclasses.asdict(cell) for key, cell in row.items()} for name, row in rows.items()}
            for dtype, rows in cells(plan, limits, results).items()
        },
        "results": [dataclasses.asdict(result) for result in results],
    }


def text(plan: Plan, limits: Limits, results: Sequence[Result]) -> str:
    """The tables, a block for each number type."""
    lines = [limits_text(limits), loads_text(plan)]
    versions = {(r.dtype, r.name): f"{r.name} {r.start.version}" if r.start else r.name for r in results}
    for dtype, rows in cells(plan, limits, results).items():
        columns = [column for column in COLUMNS if column.key in next(iter(rows.values()))]
        lines += ["", f"{dtype:24}" + "".join(f"{column.header:>14}" for column in columns)]
        notes = []
        for name, row in rows.items():
            lines.append(f"{versions[dtype, name]:24}" + "".join(f"{_value(row[c.key], c):>14}" for c in columns))
            lines.append(f"{'  of the limit':24}" + "".join(f"{_fraction(row[c.key]):>14}" for c in columns))
            if name == OURS:
                lines.append(f"{'  against best peer':24}" + "".join(f"{_ratio(row[c.key]):>14}" for c in columns))
                lines.append(f"{'':24}" + "".join(f"{_best(row[c.key]):>14}" for c in columns))
            notes += _notes(name, row, columns)
        lines += [line.rstrip() for line in notes]
    return "\n".join(line.rstrip() for line in lines)


def limits_text(limits: Limits) -> str:
    """The machine's rates in a line."""
    return (
        f"Limits with {limits.threads} threads: memory {limits.memory / 1e9:.1f} GB/s; matrix products of "
        f"{limits.float32 / 1e9:.0f} (float32), {limits.bfloat16 / 1e9:.0f} (bfloat16), {limits.int8 / 1e9:.0f} (int8) "
        "billion operations/s"
    )


def loads_text(plan: Plan) -> str:
    """What the figures are of."""
    lines = [f"Tokens/s, greedy, medians of {plan.repeats}; the start is from starting the process to its first token."]
    for load in plan.loads:
        prompt, output = (_range(lens) for lens in (load.input_lens, load.output_lens))
        context = f" after a shared context of {load.context_len:,}" if load.context_len else ""
        lines.append(f"  {load.name}: {load.num_requests} x ({prompt} prompt + {output} generated){context}")
    lines.append("  prefill: the prompts of decode-8; m, a: that the limit is the memory's or the arithmetic's")
    lines.append("  KV cache: of 16 bits; with int8 and 4-bit weights lightvllm's is int8, as OpenVINO's is by default")
    return "\n".join(lines)


def _range(lens: tuple[int, int]) -> str:
    return str(lens[0]) if lens[0] == lens[1] else f"{lens[0]}-{lens[1]}"


def _value(cell: Cell, column: Column) -> str:
    if cell.value is None:
        return "-"
    return f"{cell.value:.1f}" if column.is_rate else f"{cell.value:.2f}"


def _fraction(cell: Cell) -> str:
    return "" if cell.of_bound is None else f"{cell.of_bound[0]:.0%} {cell.of_bound[1][0]}"


def _ratio(cell: Cell) -> str:
    return "" if cell.against_best is None else f"{cell.against_best[0]:.2f}x"


def _best(cell: Cell) -> str:
    return "" if cell.against_best is None else cell.against_best[1]


def _notes(name: str, row: dict[str, Cell], columns: Sequence[Column]) -> list[str]:
    """Why cells are empty, each reason once."""
    reasons: dict[str, list[str]] = {}
    for column in columns:
        cell = row[column.key]
        if cell.value is None and cell.reason is not None:
            reasons.setdefault(cell.reason, []).append(column.header.partition(",")[0])
    every = len(columns)
    return [
        f"  {name}{'' if len(headers) == every else ', ' + ', '.join(headers)}: {reason}"
        for reason, headers in reasons.items()
    ]
