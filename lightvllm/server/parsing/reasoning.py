"""Telling reasoning from the answer."""

from typing import Literal

from lightvllm.server.parsing.deltas import ReasoningDelta
from lightvllm.server.parsing.formats import THINK_CLOSE, THINK_OPEN, ReasoningFormat
from lightvllm.server.parsing.tags import BLANKS, TagFinder

# open: the prompt has opened <think>, so the output begins within reasoning.
# possible: the output is reasoning if it begins with <think>.
# off: the whole output is the answer.
ReasoningState = Literal["open", "possible", "off"]


def reasoning_state(
    reasoning_format: ReasoningFormat | None, prompt: str, continued_message: str | None = None
) -> ReasoningState:
    """Where the output begins, by how the prompt ends.

    Args:
        reasoning_format: how this model marks reasoning.
        prompt: the rendered prompt's text. Templates may open <think>, or close it at once to turn thinking off.
        continued_message: with `continue_final_message`, the text of the message that the output continues.
    """
    if reasoning_format is None:
        return "off"
    if continued_message and not continued_message.isspace():
        return "open" if continued_message.rfind(THINK_OPEN) > continued_message.rfind(THINK_CLOSE) else "off"
    prompt = prompt.rstrip()
    if prompt.endswith(THINK_OPEN):
        return "open"
    return "off" if prompt.endswith(THINK_CLOSE) else "possible"


class ReasoningSplitter:
    """Splits an output into its reasoning, which is at the start if there is any, and the answer.

    Only the first <think> and the first </think> are tags: what follows is the answer, whatever it quotes. The line
    breaks around the tags belong to them, as the chat templates have it. A model may repeat the <think> that its prompt
    has opened.
    """

    def __init__(self, state: ReasoningState) -> None:
        self._is_open = state == "open"
        self._stage: Literal["start", "reasoning", "border", "answer"] = "answer" if state == "off" else "start"
        self._finder = TagFinder([THINK_OPEN])
        self._blanks: list[str] = []  # the output's first
        self._has_text = False  # of reasoning
        self._num_newlines = 0  # held back, as </think> may follow

    def push(self, text: str) -> tuple[list[ReasoningDelta], str]:
        """The reasoning that is certain now and was not before, and the answer's."""
        deltas: list[ReasoningDelta] = []
        if self._stage == "start":
            text = self._start(text)
        if self._stage == "reasoning":
            before, tag, text = self._finder.push(text)
            deltas = self._reasoning(before)
            if tag:
                self._stage = "border"
        if self._stage == "border":
            text = text.lstrip("\n")
            if text:
                self._stage = "answer"
        return deltas, text

    def finish(self, is_cut: bool) -> tuple[list[ReasoningDelta], str]:
        """What was held back: in an output that was cut, what may be the beginning of a tag is dropped."""
        held = "" if is_cut else self._finder.take_held()
        if self._stage == "reasoning" or (self._stage == "start" and self._is_open):
            return self._reasoning("".join(self._blanks) + held), ""
        return [], "".join(self._blanks) + held

    def _start(self, text: str) -> str:
        """Look for <think> at the output's beginning; returns the text to go on with."""
        before, tag, text = self._finder.push(text)
        self._blanks.append(before)
        if before.strip(BLANKS):  # something else is at the beginning
            text = "".join(self._blanks) + (tag or "") + self._finder.take_held() + text
            self._stage = "reasoning" if self._is_open else "answer"
        elif tag:
            self._stage = "reasoning"
        else:
            return ""
        self._blanks.clear()
        self._finder = TagFinder([THINK_CLOSE])
        return text

    def _reasoning(self, text: str) -> list[ReasoningDelta]:
        """Text of the reasoning, without the line breaks at its two ends."""
        if not self._has_text:
            text = text.lstrip("\n")
        body = text.rstrip("\n")
        num_trailing = len(text) - len(body)
        if not body:
            self._num_newlines += num_trailing
            return []
        body = "\n" * self._num_newlines + body
        self._has_text, self._num_newlines = True, num_trailing
        return [ReasoningDelta(body)]
