"""Outputs of chat models as the tests make them up, taken apart whole, cut in pieces, and ended early."""

from collections.abc import Iterable, Iterator
from typing import Any

from lightvllm.server.parsing import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ReasoningState,
    ToolCallDelta,
    ToolChoice,
    ToolFormat,
    make_output_parser,
)
from lightvllm.server.parsing.deltas import merged

FUNCTIONS = ("get_weather", "get", "add-1")
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in FUNCTIONS]


def parse(
    pieces: str | Iterable[str],
    tool_format: ToolFormat | None,
    reasoning: ReasoningState = "off",
    *,
    is_cut: bool = False,
    tool_choice: ToolChoice = "auto",
    **options: Any,
) -> list[Delta]:
    """All deltas of an output that comes in these pieces, put together as far as they can be."""
    parser = make_output_parser(
        tool_format=tool_format, reasoning=reasoning, tools=TOOLS, tool_choice=tool_choice, **options
    )
    deltas: list[Delta] = []
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        deltas += parser.push(piece)
    return merged(deltas + parser.finish(is_cut))


def cuts(text: str, max_pairs: int = 4000) -> Iterator[list[str]]:
    """The text char by char, cut at each position, and at every two positions (at most `max_pairs`, evenly spread)."""
    yield list(text)
    positions = range(len(text) + 1)
    for i in positions:
        yield [text[:i], text[i:]]
    pairs = [(i, j) for i in positions for j in positions[i:]]
    for i, j in pairs[:: -(-len(pairs) // max_pairs)]:
        yield [text[:i], text[i:j], text[j:]]


def content_of(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))


def reasoning_of(deltas: Iterable[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))


def calls_of(deltas: Iterable[Delta]) -> list[tuple[str | None, str]]:
    """Name and arguments of each call."""
    calls: dict[int, tuple[str | None, str]] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            name, arguments = calls.get(delta.index, (delta.name, ""))
            calls[delta.index] = name, arguments + delta.arguments
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())
