"""Server-sent events out of bytes that were cut anywhere (the event stream format of the HTML standard)."""

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventDecoder:
    """Finds the events of a stream. Works on bytes: what cuts a character cuts no line.

    Only an event's data is of use here; its name, id and retry time are read over, as are comments.
    """

    def __init__(self) -> None:
        self._line = b""  # what there is of a line that has not ended
        self._data: list[bytes] = []  # of the event that has not ended
        self._ended_in_cr = False
        self._is_first_line = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that ends in the chunk; lines of data are joined by a line feed."""
        if not chunk:
            return []
        if self._ended_in_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]  # the other half of a line end that is counted already
            self._ended_in_cr = False
        if chunk:
            self._ended_in_cr = chunk.endswith(b"\r")
        *lines, self._line = _LINE_END.split(self._line + chunk)
        events = []
        for line in lines:
            if not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
            else:
                self._take(line)
        return events

    def _take(self, line: bytes) -> None:
        if self._is_first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first_line = False
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
