"""Finding tags in a text that comes in pieces."""

from collections.abc import Sequence

from lightvllm.engine.detokenizer import stop_matcher

BLANKS = " \t\r\n"


class TagFinder:
    """Splits a text at the first of several tags, however it is cut into pieces; in time linear in the text.

    Attributes:
        held: the end of the text so far, which may still become a tag.
    """

    def __init__(self, tags: Sequence[str]) -> None:
        self._matcher = stop_matcher(tuple(tags))
        self._state = 0
        self.held = ""

    def push(self, text: str) -> tuple[str, str | None, str]:
        """The text that is certain to be before the first tag; the tag, if it is complete; the text behind it.

        Behind a tag the search begins anew with the next call.
        """
        self._state, end = self._matcher.advance(self._state, text)
        if end:
            tag = self._matcher.stop_at(self._state)
            before, self._state = self.take_held() + text[:end], 0
            return before.removesuffix(tag), tag, text[end:]
        text = self.take_held() + text
        certain = len(text) - self._matcher.may_be_found[self._state]
        self.held = text[certain:]
        return text[:certain], None, ""

    def take_held(self) -> str:
        """What is held; it no longer is."""
        held, self.held = self.held, ""
        return held
