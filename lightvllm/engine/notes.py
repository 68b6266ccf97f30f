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
    """The file, open on both sides: its name is needed no longer then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._noted: list[str] = []
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, request_ids: list[str]) -> None:
        """These run now, and no others. It is one call, which takes microseconds."""
        if request_ids == self._noted:
            return
        self._noted = request_ids
        notes = msgspec.msgpack.encode(request_ids)
        try:
            os.pwrite(self._file, _LENGTH.pack(len(notes)) + notes, 0)
        except OSError as error:  # a full disk is no reason to die
            logger.warning("cannot note which requests run: %s", error)

    def read(self) -> set[str]:
        """The requests that ran last: none if there are no notes, or if death came amid the writing."""
        content = os.pread(self._file, os.fstat(self._file).st_size, 0)
        try:
            (length,) = _LENGTH.unpack_from(content)
            return set(msgspec.msgpack.decode(content[_LENGTH.size :][:length], type=list[str]))
        except (struct.error, msgspec.MsgspecError):
            return set()

    def close(self) -> None:
        """Nothing is written or read any more."""
        os.close(self._file)
