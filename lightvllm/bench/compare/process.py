"""The near side of a contender's process (`drivers/serve.py` is the far one)."""

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLOSING_SECONDS = 10.0


class ContenderError(Exception):
    """A contender cannot be run, or failed: its words say why."""


class ContenderProcess:
    """A process, with all it starts, that answers JSON lines. While it is paused it takes no processor time at all.

    Args:
        command: the program and its arguments.
        log: file for what it prints besides its answers.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self._unread = b""
        with log.open("wb") as errors:
            try:
                # In a group of its own, where one signal reaches all of its processes. It is of our session: so, should
                # we be killed, the kernel sees a stopped group without a parent, and wakes and ends it.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, process_group=0
                )
            except OSError as error:
                raise ContenderError(f"cannot start {command[0]}: {error.strerror}") from None

    def send(self, record: dict[str, Any]) -> None:
        """Send a request, which `receive` takes the answer of.

        Raises:
            ContenderError: the process is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(record).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise ContenderError(self._last_words("ended")) from None

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next answer.

        Raises:
            ContenderError: none came within `timeout` seconds, the process ended, or the answer is an error.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self._signal(signal.SIGKILL)  # its late answer would be taken for the next one's
                raise ContenderError(f"no answer within {timeout:.0f} s")
            received = os.read(self._process.stdout.fileno(), 1 << 16)
            if not received:
                raise ContenderError(self._last_words("ended"))
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ContenderError(answer["error"])
        return answer

    def pause(self) -> None:
        """Stop all of its processes where they are."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, gently first."""
        self.resume()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            self._process.communicate(timeout=CLOSING_SECONDS)  # its input ends
        self._signal(signal.SIGKILL)  # what is left of it, and of what it started
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it is gone, as the next answer that is waited for will say
            os.killpg(self._process.pid, number)

    def _last_words(self, what: str) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{what}: {lines[-1].strip()[:300]}" if lines else f"{what} without a word"
