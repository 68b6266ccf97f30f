"""The pieces that a chat model's text is taken apart into."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True, slots=True)
class ContentDelta:
    """The next characters of the answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next characters of what the model thinks before it answers."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of one tool call.

    Attributes:
        index: the call's number among the output's calls, from 0. The deltas of one call follow each other.
        name: the function's name in the call's first delta, None in the others.
        arguments: the next characters of the JSON text of the arguments, as the model wrote them.
    """

    index: int
    name: str | None
    arguments: str


Delta = ContentDelta | ReasoningDelta | ToolCallDelta


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same with as few deltas as possible: neighbours of one kind, and of one call, become one."""
    result: list[Delta] = []
    for delta in deltas:
        last = result[-1] if result else None
        if isinstance(delta, ContentDelta) and isinstance(last, ContentDelta):
            result[-1] = ContentDelta(last.text + delta.text)
        elif isinstance(delta, ReasoningDelta) and isinstance(last, ReasoningDelta):
            result[-1] = ReasoningDelta(last.text + delta.text)
        elif isinstance(delta, ToolCallDelta) and isinstance(last, ToolCallDelta) and delta.index == last.index:
            result[-1] = dataclasses.replace(last, arguments=last.arguments + delta.arguments)
        else:
            result.append(delta)
    return result
