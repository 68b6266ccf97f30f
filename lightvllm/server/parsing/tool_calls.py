"""Telling tool calls from the content around them."""

import dataclasses
from collections.abc import Set
from typing import Literal

from lightvllm.server.parsing.call_reader import CallReader
from lightvllm.server.parsing.deltas import ContentDelta, Delta, ToolCallDelta
from lightvllm.server.parsing.formats import ToolFormat
from lightvllm.server.parsing.tags import BLANKS, TagFinder


@dataclasses.dataclass(frozen=True, slots=True)
class CallMarks:
    """How one tool format marks its calls.

    Attributes:
        open_tag: stands before a call.
        close_tag: stands behind a call.
        is_bare: an object alone may be a call, at the output's beginning and behind another call.
        between: characters besides blanks that may stand between two calls. (For hermes: brackets too many.)
        special_tokens: special tokens of these models, which are not for the reader.
    """

    open_tag: str
    close_tag: str | None
    is_bare: bool
    between: str
    special_tokens: tuple[str, ...]


MARKS: dict[ToolFormat, CallMarks] = {
    "hermes": CallMarks(
        open_tag="<tool_call>",
        close_tag="</tool_call>",
        is_bare=False,
        between="}]",
        special_tokens=("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"),
    ),
    "llama3_json": CallMarks(
        open_tag="<|python_tag|>",
        close_tag=None,
        is_bare=True,
        between=";",
        special_tokens=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"),
        ),
    ),
}


class ToolCallParser:
    """Takes an answer apart into content and tool calls.

    Text that looks like a call but calls no known function, or is not the object of a call, is content, as it is.
    Blanks between content and a call, and all that separates calls, are neither. What may still become a tag or a call
    is held back until that is decided.
    """

    def __init__(
        self, tool_format: ToolFormat, functions: Set[str], *, max_calls: int | None, skip_special_tokens: bool
    ) -> None:
        self._marks = marks = MARKS[tool_format]
        self._functions = functions
        self._max_calls = max_calls
        self._dropped = marks.special_tokens if skip_special_tokens else ()
        tags = {marks.open_tag, marks.close_tag or marks.open_tag, *self._dropped}
        self._finder = TagFinder(sorted(tags))
        self._last: Literal["nothing", "content", "call"] = "nothing"  # what is before the text held back
        self._gap: list[str] = []  # held back: blanks, and what may stand between calls
        self._call: CallReader | None = None
        self._call_text: list[str] = []  # held back: what may become a call
        self._num_calls = 0
        self._is_named = False  # the name of the call being read was handed out
        self._deltas: list[Delta] = []

    def push(self, text: str) -> list[Delta]:
        """Read on; returns what is certain now and was not before."""
        while text:
            text = self._read_text(text) if self._call is None else self._read_call(text, self._call)
        return self._take_deltas()

    def finish(self, is_cut: bool) -> list[Delta]:
        """The output has ended. If it was cut, what may be the beginning of a call or of a tag is dropped."""
        call = self._call
        if call is None:
            held = self._finder.take_held()
            if is_cut and held and (self._last == "call" or self._marks.open_tag.startswith(held)):
                return []
            self._content(held)
            if self._last != "call":
                self._release("".join(self._gap))
        elif not is_cut and not call.is_certain:
            self._release("".join(self._gap + self._call_text))
        elif is_cut and call.name is not None and not self._is_named:
            self._call_delta(call.name, "")
        return self._take_deltas()

    # ---- outside of calls

    def _read_text(self, text: str) -> str:
        """Read up to the next tag or call; returns the rest."""
        if self._last != "content" and not self._finder.held:
            rest = text.lstrip(BLANKS + self._marks.between if self._last == "call" else BLANKS)
            self._gap.append(text[: len(text) - len(rest)])
            text = rest
            if self._marks.is_bare and text.startswith("{"):
                self._open_call("", needs_arguments=True)
                return text
        before, tag, rest = self._finder.push(text)
        self._content(before)
        if tag == self._marks.open_tag:
            self._open_call("" if tag in self._dropped else tag, needs_arguments=False)
        elif tag is not None and tag == self._marks.close_tag:
            if self._last == "call":
                self._gap.clear()
            else:
                self._content(tag)
        return rest

    def _content(self, text: str) -> None:
        """Content, but for the blanks at its end: a call may follow."""
        body = text.rstrip(BLANKS)
        if body:
            self._release("".join(self._gap) + body)
            self._gap.clear()
            self._last = "content"
        self._gap.append(text[len(body) :])

    def _release(self, text: str) -> None:
        if text:
            self._deltas.append(ContentDelta(text))

    # ---- within a call

    def _open_call(self, tag: str, needs_arguments: bool) -> None:
        self._call = CallReader(self._functions, needs_arguments)
        self._call_text = [tag]
        self._is_named = False

    def _read_call(self, text: str, call: CallReader) -> str:
        """Read on within a call, or what may become one; returns the rest behind it."""
        end = call.push(text)
        if call.is_certain:
            self._call_delta(None if self._is_named else call.name, call.take_arguments())
            self._is_named = True
            self._gap.clear()
            self._call_text.clear()
        else:
            self._call_text.append(text[:end])
        if end is None:
            return ""
        self._call = None
        if call.is_certain:
            self._num_calls += 1
            self._last = "call"
        else:
            self._content("".join(self._call_text))
        return text[end:]

    def _call_delta(self, name: str | None, arguments: str) -> None:
        is_wanted = self._max_calls is None or self._num_calls < self._max_calls
        if is_wanted and (name or arguments):
            self._deltas.append(ToolCallDelta(self._num_calls, name, arguments))

    def _take_deltas(self) -> list[Delta]:
        deltas, self._deltas = self._deltas, []
        return deltas
