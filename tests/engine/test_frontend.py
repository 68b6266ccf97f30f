"""The front's checks, which several threads make at a time."""

from typing import Any

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.frontend import Frontend
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.sampling_params import SamplingParams

OTHERS = SamplingParams(max_tokens=1)


class Disturbed(Frontend):
    """Whenever it notes what it has checked, another thread has noted its own right after it."""

    @property
    def _last_checked(self) -> Any:
        return (OTHERS, OTHERS)

    @_last_checked.setter
    def _last_checked(self, checked: Any) -> None:
        pass


def test_a_request_has_its_own_parameters_whatever_other_threads_check() -> None:
    frontend = Disturbed(EngineConfig(model=str(DEFAULT_MODEL)))
    params = SamplingParams(max_tokens=2)
    assert frontend.open_request("a", TokenizedPrompt([5], None, None), params).params == params
