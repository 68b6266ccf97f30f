"""What the front and the engine core say to each other when they are two processes.

All are msgspec structs, sent as msgpack: to the core what a request needs, tokens so far included, so that adding one
for the first time and adding it again after a crash are the same message; to the front, one report a step.
"""

import dataclasses

import msgspec

from lightvllm.engine.request import CoreOutput
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.trace import StepTrace
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams

# ---- to the core


class AddRequest(msgspec.Struct, tag="add", frozen=True):
    """The arguments of `lightvllm.engine.request.Request`."""

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    seed: int
    eos_token_ids: tuple[int, ...] = ()
    output_token_ids: list[int] = []
    priority: int = 0
    arrival_time: float | None = None
    cache_salt: str | None = None
    is_suspect: bool = False


class AbortRequests(msgspec.Struct, tag="abort", frozen=True):
    """End requests; no output comes back for them."""

    request_ids: list[str]


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", frozen=True):
    """Forget all cached prefixes."""


class Sleep(msgspec.Struct, tag="sleep", frozen=True):
    """Give up memory, and answer with a `SleepState`. There are no requests."""

    level: int


class WakeUp(msgspec.Struct, tag="wake_up", frozen=True):
    """Take back what is named of "weights" and "kv_cache", and answer with a `SleepState`."""

    tags: list[str]


class WatchSteps(msgspec.Struct, tag="watch", frozen=True):
    """Add a trace to each report from now on, the first one a snapshot, or no longer.

    Sent again while it is on already, it brings another snapshot, for one who begins to watch later.
    """

    is_on: bool


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answer with a `Pong`."""


def refuse_what_cannot_travel(request: AddRequest) -> None:
    """Check that the message can be encoded.

    Raises:
        ParameterError: of a text with half a surrogate pair, or an integer that is too large, by its field's name.
    """
    params = request.sampling_params
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    fields |= {name: getattr(request, name) for name in ("request_id", "priority", "cache_salt")}
    for name, value in fields.items():
        try:
            msgspec.msgpack.encode(value)
        except (OverflowError, UnicodeEncodeError) as error:
            raise ParameterError(name, f"{name}: {value!r:.80} is out of range: {error}") from None


ToCore = AddRequest | AbortRequests | ResetPrefixCache | Sleep | WakeUp | WatchSteps | Ping

# ---- to the front


class EngineReady(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded.

    Attributes:
        scheduler: the core's limits; the front refuses by them what could never run.
        kv_cache: the plan of the KV cache, in words.
        device, dtype: where and in which number type the model runs.
    """

    scheduler: SchedulerConfig
    kv_cache: str
    device: str
    dtype: str


class EngineFailed(msgspec.Struct, tag="failed", frozen=True):
    """The engine cannot be started, because of a setting or the checkpoint: starting again would not help."""

    error: str


class StepReport(msgspec.Struct, tag="step", frozen=True):
    """What one step did. Steps that gave no request anything (amid a long prompt) are reported, too: the core lives.

    An abort that leaves nothing to run is reported as a step that took no time, so that nobody goes by old figures.

    Attributes:
        num_prompt_tokens: prompt tokens that were computed, those computed again after a preemption included.
        num_output_tokens: tokens that were generated.
        seconds: that it took.
        num_added: `AddRequest`s that the core has taken so far: of later ones the outputs say nothing.
        trace: what happened to whom; only while someone watches.
    """

    outputs: list[CoreOutput]
    stats: EngineStats
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float
    num_added: int = 0
    trace: StepTrace | None = None


class TraceUpdate(msgspec.Struct, tag="trace", frozen=True):
    """A trace of no step: a snapshot that was asked for."""

    trace: StepTrace


class SleepState(msgspec.Struct, tag="sleep_state", frozen=True):
    """The answer to `Sleep` and `WakeUp`.

    Attributes:
        error: why what was asked could not be done, in words.
    """

    is_sleeping: bool
    error: str | None = None


class Pong(msgspec.Struct, tag="pong", frozen=True):
    """The core lives. Sent between two steps."""


ToFront = EngineReady | EngineFailed | StepReport | TraceUpdate | SleepState | Pong
