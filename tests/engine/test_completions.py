"""What a request's state tells of its times, however late somebody looks."""

import itertools

import pytest

from lightvllm.engine import completions
from lightvllm.engine.completions import RequestState
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.request import CoreOutput
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.generate.answer import UsageCount


def test_a_late_look_tells_when_the_first_token_came(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0)
    monkeypatch.setattr(completions.time, "monotonic", lambda: next(clock))
    prompt = TokenizedPrompt([1, 2, 3])
    state = RequestState("a", prompt, SamplingParams(max_tokens=3), None, seed=0)  # at 100
    assert state.take_delta().time_to_first_token is None
    for token_id in (4, 5):
        state.append(0, CoreOutput("a", [token_id]))  # at 101 and 102
    state.append(0, CoreOutput("a", [6], finish_reason="length"))
    delta = state.take_delta()
    assert delta.outputs[0].token_ids == [4, 5, 6]
    assert delta.time_to_first_token == 1.0


def test_the_access_line_has_the_engines_time_to_first_token() -> None:
    noted: dict[str, object] = {}
    usage = UsageCount([TokenizedPrompt([1, 2])])
    state = RequestState("a", TokenizedPrompt([1, 2]), SamplingParams(max_tokens=1), None, seed=0)
    state.append(0, CoreOutput("a", [3], finish_reason="length"))
    delta = state.take_delta()
    delta.time_to_first_token = 0.25
    usage.add(0, delta)
    usage.note({"type": "http", "state": {"access": noted}})  # type: ignore[arg-type]
    assert noted["ttft"] == 0.25
    assert noted["output_tokens"] == 1
