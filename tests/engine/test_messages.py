"""What travels between front and core arrives as it was sent."""

import dataclasses
from typing import Any

import msgspec
import pytest

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.core_process import CoreSettings
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
    refuse_what_cannot_travel,
)
from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.engine.step import TokenLogprobs
from lightvllm.engine.trace import BlockChanges, FinishedRequest, StepTrace, TracedRequest, WaitingRequest
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams

PARAMS = SamplingParams(
    n=2,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.25,
    temperature=0.75,
    top_p=0.5,
    top_k=7,
    min_p=0.125,
    seed=-(2**63),
    stop=["é\n", "</s>"],
    stop_token_ids=[1, 2],
    ignore_eos=True,
    max_tokens=9,
    min_tokens=3,
    logprobs=2,
    prompt_logprobs=1,
    logit_bias={5: 1.5, 4000: -100.0},
    allowed_token_ids=[5, 6],
    structured_outputs=StructuredOutputsParams(json={"type": "object"}),
)
STATS = EngineStats(1, 2, 30, 4, 5, 60, 7, 8)
TRACE = StepTrace(
    step=3,
    seconds=0.25,
    batch=[TracedRequest("a", "prefill", 0, 4, 9, 2), TracedRequest("b", "decode", 8, 1, 9)],
    num_output_tokens=1,
    preempted=["c"],
    finished=[FinishedRequest("d", "stop")],
    waiting=[WaitingRequest("c", 12, True)],
    blocks=BlockChanges(True, ["c"], {"a": [1, 2]}, [1], [3]),
    stats=STATS,
    config=SchedulerConfig(num_blocks=30, max_model_len=64, policy="priority"),
)
OUTPUT = CoreOutput(
    "a",
    [5, 6],
    logprobs=[TokenLogprobs([5, 6], [-0.5, -1.0], 1)],
    prompt_logprobs=[TokenLogprobs([7], [-0.25], 3)],
    finish_reason="stop",
    stop_reason=6,
    num_cached_tokens=4,
    first_scheduled_time=12.5,
    error="it broke",
)
ADD = AddRequest("é/1", [1, 2, 3], PARAMS, 2**63 - 1, (0, 2), [4, 5], -3, 1.5, "salt", True)
TO_CORE = [ADD, AbortRequests(["a", "b"]), ResetPrefixCache(), Sleep(2), WakeUp(["weights"]), WatchSteps(True), Ping()]
TO_FRONT = [
    EngineReady(SchedulerConfig(num_blocks=3, max_model_len=64), "much", "cpu", "bfloat16"),
    EngineFailed("model: 'x' is no folder"),
    StepReport([OUTPUT, CoreOutput("b", [])], STATS, 4, 3, 0.5, 2, TRACE),
    TraceUpdate(TRACE),
    SleepState(True, "it cannot"),
    Pong(),
]


@pytest.mark.parametrize("message", TO_CORE, ids=lambda message: type(message).__name__)
def test_messages_to_the_core_arrive(message: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToCore) == message


@pytest.mark.parametrize("message", TO_FRONT, ids=lambda message: type(message).__name__)
def test_messages_to_the_front_arrive(message: Any) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToFront) == message


def test_none_was_forgotten() -> None:
    assert {type(message) for message in TO_CORE} == set(ToCore.__args__)
    assert {type(message) for message in TO_FRONT} == set(ToFront.__args__)
    for struct in (ADD, OUTPUT):  # and all of their fields say something
        fields = msgspec.structs.fields(type(struct))
        unset = [field.name for field in fields if getattr(struct, field.name) == field.default]
        assert unset == []


def test_settings_arrive() -> None:
    config = EngineConfig(model="m", hf_overrides={"rope_theta": 1e6}, max_model_len=12, gpu_memory_utilization=0.5)
    settings = CoreSettings.of(config, DEFAULT_MODEL, "ipc://x", DEFAULT_MODEL / "notes", 20)
    arrived = msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=CoreSettings)
    assert arrived == settings
    assert EngineConfig(**arrived.engine) == config


def test_a_request_is_made_of_its_message() -> None:
    request = Request.from_message(ADD)
    assert (request.prompt_token_ids, request.output_token_ids) == ([1, 2, 3], [4, 5])
    assert (request.seed, request.priority, request.cache_salt) == (2**63 - 1, -3, "salt")
    assert (request.arrival_time, request.sampling_params) == (1.5, PARAMS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("request_id", "\ud800"),
        ("cache_salt", "a\udfff"),
        ("priority", 2**64),
        ("priority", -(2**63) - 1),
        ("stop", ["fine", "\ud800"]),
        ("seed", 2**70),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_its_name(name: str, value: Any) -> None:
    add = msgspec.structs.replace(ADD, sampling_params=dataclasses.replace(PARAMS))
    refuse_what_cannot_travel(add)
    if name in AddRequest.__struct_fields__ and name != "seed":
        add = msgspec.structs.replace(add, **{name: value})
    else:
        setattr(add.sampling_params, name, value)
    with pytest.raises(ParameterError, match=f"^{name}: .* is out of range") as error:
        refuse_what_cannot_travel(add)
    assert error.value.parameter == name
