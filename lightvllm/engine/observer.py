"""Who watches the engine from the front: metrics, logs, traces."""

import logging
from dataclasses import dataclass
from typing import Any

from lightvllm.engine.messages import EngineReady, StepReport
from lightvllm.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestRecord:
    """A request that has ended. Times are by `time.monotonic`, None for what it did not come to.

    Attributes:
        num_output_tokens: of each of its completions.
        finish_reasons: of each of its completions: "stop", "length", "abort" or "error".
        num_crashes: engine crashes it lived through.
    """

    request_id: str
    params: SamplingParams
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: list[int]
    finish_reasons: list[str]
    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    last_token_time: float | None
    finished_time: float
    num_crashes: int = 0


class EngineObserver:
    """Called on the event loop, so each call is short. Who derives from it says only what it wants to hear."""

    def on_ready(self, ready: EngineReady) -> None:
        """The engine has its model loaded: at the start, and again after each crash."""

    def on_add(self, request_id: str) -> None:
        """A request was accepted: `on_finish` will be called for it. Called by the task that brought it."""

    def on_step(self, report: StepReport) -> None:
        """The engine made a step. The counters in `report.stats` start again at 0 when the engine does."""

    def on_first_token(self, seconds: float) -> None:
        """A request got its first token, so long after it arrived."""

    def on_inter_token(self, seconds: float) -> None:
        """A completion got a token, so long after the one before."""

    def on_finish(self, record: RequestRecord) -> None:
        """A request ended."""

    def on_crash(self, num_recovered: int) -> None:
        """The engine died or hung, and is started again: so many requests go on where they were."""


class Observers(EngineObserver):
    """Several observers as one. When one of them fails that is logged, and no reason for anybody else to stop."""

    def __init__(self, *observers: EngineObserver) -> None:
        self._observers = observers

    def on_ready(self, ready: EngineReady) -> None:
        self._tell("on_ready", ready)

    def on_add(self, request_id: str) -> None:
        self._tell("on_add", request_id)

    def on_step(self, report: StepReport) -> None:
        self._tell("on_step", report)

    def on_first_token(self, seconds: float) -> None:
        self._tell("on_first_token", seconds)

    def on_inter_token(self, seconds: float) -> None:
        self._tell("on_inter_token", seconds)

    def on_finish(self, record: RequestRecord) -> None:
        self._tell("on_finish", record)

    def on_crash(self, num_recovered: int) -> None:
        self._tell("on_crash", num_recovered)

    def _tell(self, method: str, *args: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, method)(*args)
            except Exception:
                logger.exception("%s of %s failed", method, type(observer).__name__)
