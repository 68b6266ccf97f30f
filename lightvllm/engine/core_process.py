"""The engine core in a process of its own: `python -m lightvllm.engine.core_process`, started by `process.py`.

It reads its settings from standard input, loads the model, and then serves messages between steps. It keeps nothing
that must survive. Standard input stays open as long as the front lives: when it closes, this process ends.
"""

import ctypes
import dataclasses
import gc
import logging
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from lightvllm.config import EngineConfig
from lightvllm.engine.build import build_core
from lightvllm.engine.core import EngineCore
from lightvllm.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    EngineReady,
    Ping,
    Pong,
    ResetPrefixCache,
    Sleep,
    SleepState,
    StepReport,
    ToCore,
    ToFront,
    TraceUpdate,
    WakeUp,
    WatchSteps,
)
from lightvllm.engine.notes import Notes
from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.step import StepInput
from lightvllm.engine.trace import StepTracer
from lightvllm.errors import EngineAsleep, EngineBusy
from lightvllm.model_config import ModelConfig

LENGTH = struct.Struct("<Q")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
# On a CPU, where products are PyTorch's own (in float16, or without our kernels), torch and oneDNN keep a compiled one
# for every number of tokens that a step ever had, 1024 each: hundreds of MB in time, of which the 64 used last do the
# work as quickly. Read when the first is made.
KERNEL_CACHES = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
logger = logging.getLogger(__name__)


class CoreSettings(msgspec.Struct, frozen=True):
    """What the process reads first, behind its length.

    Attributes:
        address: of the front's socket.
        notes: file of `lightvllm.engine.notes`.
        path: the checkpoint's folder, which the front has found or downloaded.
    """

    address: str
    notes: str
    path: str
    engine: dict[str, Any]
    log_level: int

    @classmethod
    def of(cls, config: EngineConfig, path: Path, address: str, notes: Path, log_level: int) -> "CoreSettings":
        """The settings of an engine."""
        engine = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        return cls(address, str(notes), str(path), engine, log_level)


class CoreServer:
    """Runs the core's steps, and between two of them takes messages in."""

    def __init__(self, core: EngineCore, socket: "zmq.Socket[bytes]", notes: Notes) -> None:
        self.core = core
        self.core.on_scheduled = self._before_step
        self.socket = socket
        self.notes = notes
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode = msgspec.msgpack.Decoder(ToCore).decode
        self.tracer: StepTracer | None = None
        self.refused: list[CoreOutput] = []
        self.num_added = 0
        self.num_prompt_tokens = 0  # of the step at hand
        self.poller = zmq.Poller()
        self.poller.register(socket, zmq.POLLIN)
        self.poller.register(sys.stdin.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Serve until standard input closes. Without requests it sleeps."""
        while True:
            for ready, _ in self.poller.poll(0 if self.core.has_unfinished() else None):
                if ready == sys.stdin.fileno():  # nothing is ever written there: it was closed
                    return
                self._take_messages()
            if self.core.has_unfinished() or self.refused:
                self._step()

    def _take_messages(self) -> None:
        aborted = False
        while True:
            try:
                message = self.decode(self.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                break
            match message:
                case AddRequest():
                    self._add(message)
                case AbortRequests():
                    aborted |= bool(self.core.abort(message.request_ids))
                case ResetPrefixCache():
                    self.core.reset_prefix_cache()
                case Sleep() | WakeUp():
                    self._send(self._sleep_or_wake_up(message))
                case WatchSteps():
                    self._watch(message.is_on)
                case Ping():
                    self._send(Pong())
        if aborted and not self.core.has_unfinished():  # no step follows that would tell of it
            self._report([], 0, 0.0)

    def _add(self, message: AddRequest) -> None:
        self.num_added += 1
        try:
            self.core.add_request(Request.from_message(message))
        except (ValueError, EngineAsleep) as error:
            # The front checks by the same rules, so this is a surprise, but no reason to die.
            self.refused.append(CoreOutput(message.request_id, [], finish_reason="error", error=str(error)))

    def _sleep_or_wake_up(self, message: Sleep | WakeUp) -> SleepState:
        gc.unfreeze()  # what is given up must be found, and what comes in its place is frozen again
        error = None
        try:
            if isinstance(message, Sleep):
                self.core.sleep(message.level)
            else:
                self.core.wake_up(message.tags)
        except (ValueError, EngineBusy) as refusal:
            error = str(refusal)
        except Exception as failure:
            logger.exception("sleeping or waking up failed")
            error = f"{type(failure).__name__}: {failure}"
        gc.collect()
        gc.freeze()
        return SleepState(self.core.is_sleeping, error)

    def _watch(self, is_on: bool) -> None:
        self.core.runs_ahead = self.core.executor.runs_ahead and not is_on  # a trace shows one step at a time
        if not is_on:
            self.tracer = None
            return
        self.tracer = self.tracer or StepTracer(self.core.scheduler)
        self._send(TraceUpdate(self.tracer.snapshot()))

    def _before_step(self, step: StepInput) -> None:
        requests = self.core.scheduler.requests
        for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
            request = requests[request_id]
            left = request.num_prompt_tokens - request.num_computed_tokens
            if left > 0:
                self.num_prompt_tokens += min(left, num_tokens)
        under_way = self.core.under_way()
        self.notes.write([*under_way, *step.request_ids] if under_way else step.request_ids)
        if self.tracer is not None:
            self.tracer.before(step)

    def _step(self) -> None:
        self.num_prompt_tokens = 0
        start = time.monotonic()
        outputs = self.core.step()
        seconds = time.monotonic() - start
        self._report(outputs, self.num_prompt_tokens, seconds)

    def _report(self, outputs: list[CoreOutput], num_prompt_tokens: int, seconds: float) -> None:
        trace = None if self.tracer is None else self.tracer.after(outputs, seconds)
        report = StepReport(
            outputs=self.refused + outputs,
            stats=self.core.stats(),
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=sum(len(output.new_token_ids) for output in outputs),
            seconds=seconds,
            num_added=self.num_added,
            trace=trace,
        )
        self.refused = []
        self._send(report)

    def _send(self, message: ToFront) -> None:
        self.socket.send(self.encode(message))


def main() -> None:
    """Read the settings, load the model, say so, and serve."""
    _end_with_the_front()
    for name, capacity in KERNEL_CACHES.items():
        os.environ.setdefault(name, capacity)
    (length,) = LENGTH.unpack(_read(LENGTH.size))
    settings = msgspec.msgpack.decode(_read(length), type=CoreSettings)
    logging.basicConfig(format="%(message)s", level=settings.log_level)
    notes = Notes(Path(settings.notes))
    socket = zmq.Context().socket(zmq.PAIR)
    socket.set_hwm(0)  # never blocks: what is under way is bounded by the requests there are
    socket.connect(settings.address)
    encode = msgspec.msgpack.Encoder().encode
    try:
        config = EngineConfig(**settings.engine)
        path = Path(settings.path)
        core = build_core(config, path, ModelConfig.from_pretrained(path, config.hf_overrides))
    except ValueError as error:
        socket.send(encode(EngineFailed(str(error))))
        sys.stdin.buffer.read()  # until the front closes it, which has then heard
        os._exit(1)
    gc.collect()
    gc.freeze()  # none of what there is now becomes garbage, so that collections amid streams need not look through it
    socket.send(encode(EngineReady(core.scheduler.config, **core.executor.describe())))
    CoreServer(core, socket, notes).run()
    os._exit(0)  # the front is gone or wants this process gone: nobody needs memory freed in order


def _end_with_the_front() -> None:
    """Have the kernel kill this process when the front dies, also amid a step. Not on Linux, it ends after the step."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read(length: int) -> bytes:
    """Exactly so many bytes of standard input."""
    data = b""
    while len(data) < length:
        chunk = os.read(sys.stdin.fileno(), length - len(data))
        if not chunk:
            sys.exit("the front closed standard input before it sent the settings")
        data += chunk
    return data


if __name__ == "__main__":
    main()
