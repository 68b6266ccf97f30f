"""The front's hold on the process that the engine core runs in: start it, talk to it, notice that it died, end it."""

import asyncio
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from lightvllm.config import EngineConfig
from lightvllm.engine.core_process import LENGTH, CoreSettings
from lightvllm.engine.messages import ToCore, ToFront
from lightvllm.engine.notes import Notes

MAX_LOG_BYTES = 1 << 16
logger = logging.getLogger("lightvllm.engine.core")


class CoreDied(Exception):
    """The process has ended; nothing more comes from it."""


class CoreProcess:
    """One engine core process. It dies with this one, and is reached through a socket that only this user can open."""

    MODULE = "lightvllm.engine.core_process"

    def __init__(self, config: EngineConfig, path: Path) -> None:
        self._config = config
        self._path = path
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._folder = Path(tempfile.mkdtemp(prefix="lightvllm-"))
        self._notes = Notes(self._folder / "running")
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(ToFront).decode
        self._process: asyncio.subprocess.Process | None = None
        self._inbox: asyncio.Queue[ToFront | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """Of the process; None before the start."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the process; its first message says whether the model could be loaded.

        Raises:
            OSError: there is no room for another process or file.
        """
        address = f"ipc://{self._folder}/socket"
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            raise OSError(f"cannot listen on {address}: {error}") from None
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # an interrupt from the keyboard is for the front, which ends this in order
        )
        assert process.stdin is not None
        level = logging.getLogger("lightvllm").getEffectiveLevel()
        settings = msgspec.msgpack.encode(CoreSettings.of(self._config, self._path, address, self._notes.path, level))
        process.stdin.write(LENGTH.pack(len(settings)) + settings)
        self._tasks = [asyncio.create_task(task) for task in (self._log_output(), self._await_end(), self._read())]

    def send(self, message: ToCore) -> None:
        """Send a message. It is lost if the process is dead, which `receive` tells."""
        self._socket.send(self._encode(message))

    async def receive(self) -> ToFront:
        """The next message.

        Raises:
            CoreDied: there is none, and will be none.
        """
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)
            assert self._process is not None
            raise CoreDied(f"process {self._process.pid} ended with code {self._process.returncode}")
        return message

    def running_requests(self) -> set[str]:
        """See `lightvllm.engine.notes`."""
        return self._notes.read()

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self, timeout: float = 0.0) -> None:
        """End the process, in order if it does so within `timeout` seconds, and free everything."""
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # which tells it to end
            try:
                await asyncio.wait_for(process.wait(), timeout)
            except TimeoutError:
                self.kill()
                await process.wait()
            await asyncio.wait(self._tasks[:1], timeout=1.0)  # its last words are worth having
        for task in self._tasks:
            task.cancel()
        self._socket.close(linger=0)
        self._notes.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.recv()
                self._remove_folder()  # the process has opened what is in it, and should this one be killed, it stays
                self._inbox.put_nowait(self._decode(message))
        except msgspec.MsgspecError:
            logger.exception("the engine process said something that cannot be understood: it is killed")
            self.kill()

    async def _await_end(self) -> None:
        assert self._process is not None
        await self._process.wait()
        self._inbox.put_nowait(None)

    async def _log_output(self) -> None:
        """What the process prints, its log lines and the traceback it may die of, goes to the log."""
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(MAX_LOG_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LOG_BYTES:  # in pieces, then
                lines, rest = [*lines, rest], b""
            _log(lines)
        _log([rest])


def _log(lines: list[bytes]) -> None:
    for line in lines:
        if text := line.decode(errors="replace").rstrip():
            logger.info("%s", text)
