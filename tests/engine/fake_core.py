"""The engine core's process with a worker that has no model: it starts in an instant, and fails when it is told to.

    python -m tests.engine.fake_core

Everything but the worker is the real thing. The worker's tokens are a pure function of prefix and seed, and it checks
every step as strictly as `tests.engine.fakes` does. What goes wrong stands in the prompts: one that begins with
`[trigger, times, after]` sets the trigger off when the request has `after` output tokens, so many times in all (0 is
always), counted over all processes in the folder that `FOLDER_VARIABLE` names. `Options` are read from there, too.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from lightvllm.config import EngineConfig
from lightvllm.engine import core_process
from lightvllm.engine.core import EngineCore
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepInput, StepOutput
from lightvllm.model_config import ModelConfig
from tests.engine.fakes import FakeExecutor

FOLDER_VARIABLE = "LIGHTVLLM_TESTS_FAKE_CORE"

# Token ids, none of which the fake worker samples.
DIE, RAISE, NO_MEMORY, HANG, SHOUT, BABBLE, BUG = TRIGGERS = range(1000, 1007)
HUGE_LINE = 1 << 20


class Options(msgspec.Struct):
    """How the processes behave.

    Attributes:
        step_seconds: that a step takes at least.
        sleep_error: why the worker cannot sleep.
        refusals: starts that fail, of those to come; `refuse_by` says how.
    """

    step_seconds: float = 0.0
    num_blocks: int = 1024
    max_model_len: int = 512
    refusals: int = 0
    refuse_by: str = "exit"
    sleep_error: str = ""

    def write(self, folder: Path) -> None:
        """To be read by the next process to start."""
        (folder / "options.json").write_bytes(msgspec.json.encode(self))


class Counters:
    """Numbers in files, which outlive this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def count(self, name: str) -> int:
        """How often this was called with this name before."""
        file = self._folder / name
        before = int(file.read_text()) if file.exists() else 0
        file.write_text(str(before + 1))
        return before


class TriggeredExecutor(FakeExecutor):
    """Fails as the prompts say."""

    def __init__(self, config: SchedulerConfig, options: Options, counters: Counters) -> None:
        super().__init__(config, seed=random.SystemRandom().getrandbits(32))
        self.options = options
        self.counters = counters
        self.crash = self.pull_triggers

    def describe(self) -> dict[str, str]:
        return {"device": "none", "dtype": "none", "kv_cache": f"{self.config.num_blocks} blocks of nothing"}

    def execute(self, step: StepInput) -> StepOutput:
        time.sleep(self.options.step_seconds)
        return super().execute(step)

    def sleep(self, level: int) -> None:
        if self.options.sleep_error:
            raise ValueError(self.options.sleep_error)
        super().sleep(level)

    def pull_triggers(self, step: StepInput) -> None:
        new = {request.request_id: request for request in step.new_requests}
        for request_id in step.request_ids:
            request = new.get(request_id) or self._known[request_id]
            trigger = request.token_ids[0]
            if trigger in TRIGGERS:
                times, after = request.token_ids[1:3]
                is_due = len(request.token_ids) - request.num_prompt_tokens >= after
                name = f"{trigger}-{request.seed}"
                if is_due and (times == 0 or self.counters.count(name) < times):
                    pull(trigger)


def pull(trigger: int) -> None:
    """Let it go wrong."""
    if trigger == DIE:
        os._exit(3)
    if trigger == RAISE:
        raise RuntimeError("the model broke")
    if trigger == NO_MEMORY:
        raise MemoryError("no room for the logits")
    if trigger == HANG:
        while True:
            signal.pause()
    if trigger == SHOUT:
        sys.stderr.write("shout" * (HUGE_LINE // 5) + "\n")
        sys.stderr.flush()
    if trigger == BABBLE:
        STATE["server"].socket.send(b"\xc1 is no message")  # type: ignore[attr-defined]
        time.sleep(60)
    if trigger == BUG:
        raise Bug("not an Exception, as a bug outside of the step would be")


class Bug(BaseException):
    """Not to be blamed on a request."""


STATE: dict[str, object] = {}


class CheckedServer(core_process.CoreServer):
    """Looks after each step whether blocks, queues and requests agree."""

    def __init__(self, core: EngineCore, *args: Any) -> None:
        super().__init__(core, *args)
        STATE["server"] = self

    def _step(self) -> None:
        super()._step()
        self.core.check_integrity()


def build_core(config: EngineConfig, path: Path, model_config: ModelConfig) -> EngineCore:
    """As `lightvllm.engine.build.build_core`."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    options = msgspec.json.decode((folder / "options.json").read_bytes(), type=Options)
    counters = Counters(folder)
    with (folder / "starts").open("a") as file:
        file.write(f"{time.time()}\n")
    if options.refusals:
        refusals = options.refusals
        options.refusals -= 1
        options.write(folder)
        refuse(options.refuse_by, refusals)
    scheduler = SchedulerConfig(
        num_blocks=options.num_blocks,
        max_model_len=options.max_model_len,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        policy=config.scheduling_policy,
    )
    return EngineCore(TriggeredExecutor(scheduler, options, counters), scheduler)


def refuse(how: str, number: int) -> NoReturn:
    """Do not start."""
    if how == "error":
        raise ValueError(f"model: the checkpoint has gone, refusal {number}")
    if how == "hang":
        while True:
            signal.pause()
    os._exit(4)


if __name__ == "__main__":
    core_process.build_core = build_core
    core_process.CoreServer = CheckedServer  # type: ignore[misc]
    core_process.main()
