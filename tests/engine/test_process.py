"""The core's process: it ends with the front, its words are logged, and its notes outlive it."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine import process
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.notes import Notes
from lightvllm.engine.process import CoreProcess
from tests.engine import fake_core
from tests.engine.rig import REPOSITORY, Rig, rig

__all__ = ["rig"]

# A front of its own, to be killed: it prints the pid of its core.
FRONT = """
import asyncio, sys
from lightvllm.config import EngineConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.process import CoreProcess
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.sampling_params import SamplingParams

async def main(model, trigger):
    CoreProcess.MODULE = "tests.engine.fake_core"
    engine = AsyncEngine(EngineConfig(model=model))
    await engine.start()
    stream = await engine.add_request("a", TokenizedPrompt([trigger, 0, 3]), SamplingParams(max_tokens=400))
    async for _ in stream:
        break
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def gone(pid: int, timeout: float = 5.0) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize("state", ["idle", "busy", "hung", "stopped"])
def test_the_core_ends_when_the_front_is_killed(rig: Rig, state: str) -> None:
    rig.set(step_seconds=0.02 if state == "busy" else 0.0)
    trigger = fake_core.HANG if state == "hung" else 3
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, str(DEFAULT_MODEL), str(trigger)],
        env={**os.environ, "TMPDIR": str(rig.folder)},
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    assert front.stdout is not None
    with front:
        pid = int(front.stdout.readline())
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.2)
        assert psutil.pid_exists(pid)
        front.kill()
        front.wait()
        assert gone(pid)
    rig.check_clean()  # not even the folder of the socket


def log_of(data: list[bytes], caplog: pytest.LogCaptureFixture) -> list[str]:
    """What is logged of a process that prints this, piece by piece."""

    class Stream:
        async def read(self, most: int) -> bytes:
            return data.pop(0) if data else b""

    async def main() -> None:
        core = CoreProcess(EngineConfig(model=str(DEFAULT_MODEL)), DEFAULT_MODEL)
        core._process = type("Process", (), {"stdout": Stream()})()  # type: ignore[assignment]
        await core._log_output()
        core._process = None
        await core.close()

    caplog.set_level(logging.INFO, logger="lightvllm")
    asyncio.run(main())
    return [record.getMessage() for record in caplog.records]


def test_lines_are_logged_whole(caplog: pytest.LogCaptureFixture) -> None:
    pieces = [b"one\ntw", b"o\n\n  thr", "ee é".encode()[:-1], "é".encode()[-1:] + b"\xff\r\nfour"]
    assert log_of(pieces, caplog) == ["one", "two", "  three é\ufffd", "four"]


def test_a_line_without_end_is_logged_in_pieces(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 8)
    lines = log_of([b"12345678"] * 4 + [b"9\nend\n"], caplog)
    assert lines == ["1234567812345678", "1234567812345678", "9", "end"]


def test_notes_outlive_their_writer(tmp_path: Path) -> None:
    reader = Notes(tmp_path / "notes")
    assert reader.read() == set()
    writer = Notes(reader.path)
    reader.path.unlink()
    for names in (["a", "b", "c" * 1000], ["a"], ["é", "f"], []):
        writer.write(names)
        assert reader.read() == set(names)
    writer.write(["g", "h" * 1000])
    os.ftruncate(writer._file, 500)  # as if death had come amid the writing
    assert reader.read() == set()
    writer.close()
    reader.close()


def test_notes_that_cannot_be_written_are_no_reason_to_die(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes(tmp_path / "notes")
    writable, notes._file = notes._file, os.open(notes.path, os.O_RDONLY)
    notes.write(["a"])
    assert "cannot note which requests run" in caplog.text
    notes.close()
    os.close(writable)


def test_a_folder_whose_name_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    async def main() -> None:
        engine = AsyncEngine(EngineConfig(model=str(DEFAULT_MODEL)))
        with pytest.raises(ValueError, match=r"cannot listen on ipc://.*xxx.* is longer than"):
            await engine.start()

    asyncio.run(main())
    assert list(folder.iterdir()) == []
