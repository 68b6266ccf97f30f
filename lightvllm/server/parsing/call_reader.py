"""Reading the JSON object of one tool call while it is being written."""

from collections.abc import Generator, Set

from lightvllm.server.parsing.tags import BLANKS

_ARGUMENTS = frozenset({"arguments", "parameters"})


class CallReader:
    """Reads {"name": ..., "arguments": {...}}, with its keys in any order; "parameters" means the same as "arguments".

    It is a call for certain once the name of a known function and the beginning of an object of arguments are there.
    Then the arguments are passed on as they come. Only their brackets and strings are followed, to find their end:
    whether the model writes them as valid JSON is the client's to see, as nothing could be taken back.

    Args:
        functions: the names that can be called.
        needs_arguments: whether {"name": ...} without arguments is no call. Otherwise its arguments are {}.

    Attributes:
        name: the function's, once it is known.
        is_certain: whether it is a call, whatever follows.
    """

    def __init__(self, functions: Set[str], needs_arguments: bool) -> None:
        self._functions = functions
        self._needs_arguments = needs_arguments
        self._arguments: list[str] = []
        self.name: str | None = None
        self.is_certain = False
        self._steps = self._read()
        next(self._steps)

    def push(self, text: str) -> int | None:
        """Read on. Returns the length of what belongs to the object if it ends here, or breaks; None if it goes on."""
        for position, char in enumerate(text):
            try:
                self._steps.send(char)
            except StopIteration:
                return position + 1
            except _NotACall:
                return position
        return None

    def take_arguments(self) -> str:
        """The arguments' characters since the last time. To be asked for only when it `is_certain`."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _read(self) -> Generator[None, str, None]:
        """Reads as if all of the text were there: each `yield` is the next character, when it has come."""
        yield from _expect("{")
        unread = {"name", "type", *_ARGUMENTS}
        char = ","
        while char == "," and not self.is_certain:
            yield from _expect('"')
            key = yield from _one_of(unread)
            unread -= _ARGUMENTS if key in _ARGUMENTS else {key}
            yield from _expect(":")
            if key in _ARGUMENTS:
                yield from _expect("{")
                self._arguments.append("{")
                self.is_certain = self.name is not None
                yield from _read_to_closing_bracket(self._arguments)
            else:
                yield from _expect('"')
                value = yield from _one_of(self._functions if key == "name" else {"function"})
                if key == "name":
                    self.name = value
            self.is_certain = self.name is not None and not unread & _ARGUMENTS
            char = yield from _nonblank()
        if self.is_certain and char == ",":  # whatever else the object has
            yield from _read_to_closing_bracket([])
        elif char != "}" or self.name is None:
            raise _NotACall
        elif unread & _ARGUMENTS:
            if self._needs_arguments:
                raise _NotACall
            self._arguments.append("{}")
            self.is_certain = True


class _NotACall(Exception):
    """The last character cannot belong to a call's object."""


def _nonblank() -> Generator[None, str, str]:
    while (char := (yield)) in BLANKS:
        pass
    return char


def _expect(char: str) -> Generator[None, str, None]:
    if (yield from _nonblank()) != char:
        raise _NotACall


def _one_of(words: Set[str]) -> Generator[None, str, str]:
    """The rest of a JSON string that is one of the words. Model and grammar write them without escapes."""
    word = ""
    while (char := (yield)) != '"':
        word += char
        if not any(known.startswith(word) for known in words):
            raise _NotACall
    if word not in words:
        raise _NotACall
    return word


def _read_to_closing_bracket(read: list[str]) -> Generator[None, str, None]:
    """The rest of an object, behind its opening bracket. Each character is added to `read` as it comes."""
    depth = 1
    in_string = False
    while depth:
        char = yield
        if char == "<" and not in_string:  # no JSON, so rather the tag behind a call whose brackets do not match
            raise _NotACall
        read.append(char)
        if in_string and char == "\\":
            read.append((yield))
        elif char == '"':
            in_string = not in_string
        elif not in_string and char in "{[":
            depth += 1
        elif not in_string and char in "}]":
            depth -= 1
