"""The pieces that a chat model's text is taken apart into."""

import dataclasses


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
