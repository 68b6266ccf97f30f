"""Which requests the core's process runs, noted in a file: when it dies, what it died of is one of them, if it is any.

A message would not do: the last ones before a sudden death may be lost. What was written to a file is there.
"""

import logging
import os
import struct
from pathlib import Path

import msgspec

_LENGTH = struct.Struct("<Q")
logger = logging.getLogger(__name__)


class Notes:
    """Keeps the file. It is written in place with one call, which takes microseconds."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def write(self, request_ids: list[str]) -> None:
        """These run now, and no others."""
        notes = msgspec.msgpack.encode(request_ids)
        try:
            os.pwrite(self._file.fileno(), _LENGTH.pack(len(notes)) + notes, 0)
        except OSError as error:  # a full disk is no reason to die
            logger.warning("cannot note which requests run: %s", error)


def read_notes(path: Path) -> set[str]:
    """The requests that ran last: none if there are no notes, or if death came amid the writing."""
    try:
        content = path.read_bytes()
        (length,) = _LENGTH.unpack_from(content)
        return set(msgspec.msgpack.decode(content[_LENGTH.size :][:length], type=list[str]))
    except (OSError, struct.error, msgspec.MsgspecError):
        return set()
