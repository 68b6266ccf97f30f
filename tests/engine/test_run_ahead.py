"""The core over an executor that runs steps in the background: when it submits a step behind another, and when not."""

import pytest

from lightvllm.engine.core import EngineCore
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import PendingOutput, StepInput, StepOutput
from tests.engine.fakes import Collector, FakeExecutor, make_request

pytestmark = pytest.mark.usefixtures("stopped_clock")


class Logged(FakeExecutor):
    """Writes down what comes when."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config, runs_ahead=True)
        self.events: list[str] = []
        self.dropped: list[list[str]] = []

    def submit(self, step: StepInput) -> PendingOutput:
        number = self.num_steps
        self.dropped.append(step.dropped_request_ids)
        self.events.append(f"submit {number}")
        output = self.execute(step)

        def wait() -> StepOutput:
            self.events.append(f"wait {number}")
            return output

        return wait


def run(*requests: dict[str, object], num_blocks: int = 40, **options: object) -> tuple[Logged, Collector, EngineCore]:
    config = SchedulerConfig(num_blocks=num_blocks, max_model_len=40, block_size=4, max_num_batched_tokens=16)
    executor = Logged(config)
    core = EngineCore(executor, config)
    for index, params in enumerate(requests):
        core.add_request(make_request(f"r{index}", [index + 1, 2, 3], **params))
    collector = Collector()
    while core.has_unfinished():
        collector.take(core.step())
        core.check_integrity()
    assert core.under_way() == []
    assert core.stats().num_used_blocks == 0
    return executor, collector, core


def test_a_step_is_submitted_before_the_one_ahead_is_waited_for() -> None:
    executor, collector, _ = run({"max_tokens": 4})
    assert executor.events == [
        "submit 0", "submit 1", "wait 0", "submit 2", "wait 1", "submit 3", "wait 2", "wait 3",
    ]  # fmt: skip
    assert len(collector.token_ids["r0"]) == 4


def test_nothing_is_submitted_for_a_request_whose_length_ends_it() -> None:
    executor, _, _ = run({"max_tokens": 1}, {"max_tokens": 3})
    assert executor.scheduled == [["r0", "r1"], ["r1"], ["r1"]]


def test_a_request_that_a_stop_token_ends_has_one_step_in_vain() -> None:
    executor, collector, _ = run({"max_tokens": 20})
    stop = collector.token_ids["r0"][4]
    num_steps = collector.token_ids["r0"].index(stop) + 1
    executor, collector, _ = run({"max_tokens": 20, "stop_token_ids": [stop]})
    assert len(collector.token_ids["r0"]) == num_steps
    assert executor.num_steps == num_steps + 1


@pytest.mark.parametrize(
    "params", [{"logprobs": 1}, {"repetition_penalty": 1.5}, {"min_tokens": 2}, {"bad_words": ["x"]}]
)
def test_what_depends_on_the_tokens_before_waits_for_them(params: dict[str, object]) -> None:
    executor, _, _ = run({"max_tokens": 3}, {"max_tokens": 3, **params})
    assert executor.events == [f"{event} {number}" for number in range(3) for event in ("submit", "wait")]


def test_nothing_is_preempted_by_a_step_ahead() -> None:
    """Where blocks may run out, the core waits for the tokens it would have to tell the worker of again."""
    _, collector, core = run({"max_tokens": 20}, {"max_tokens": 20}, num_blocks=8)
    assert core.stats().num_preemptions > 0
    assert {len(tokens) for tokens in collector.token_ids.values()} == {20}


def test_one_watched_does_not_run_ahead() -> None:
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4)
    executor = Logged(config)
    core = EngineCore(executor, config)
    core.runs_ahead = False
    core.add_request(make_request("r0", [1, 2, 3], max_tokens=3))
    while core.has_unfinished():
        core.step()
    assert executor.events == [f"{event} {number}" for number in range(3) for event in ("submit", "wait")]


def test_an_error_discards_the_step_behind() -> None:
    """What is behind may have read what the failed request wrote: all others still get the tokens they would alone."""
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4)
    executor = Logged(config)
    core = EngineCore(executor, config)
    for name in ("r0", "r1"):
        core.add_request(make_request(name, [1, 2, 3, 4, 5, 6, 7, 8, 9], max_tokens=6))
    collector = Collector()
    collector.take(core.step())
    executor.errors["r0"] = "ill"
    while core.has_unfinished():
        collector.take(core.step())
        core.check_integrity()
    alone = run_alone([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert collector.finished["r0"].error == "ill"
    assert collector.token_ids["r1"] == alone


def test_a_step_that_fails_when_waited_for_takes_the_one_behind_with_it() -> None:
    """Nobody is ended for it: each of its requests is tried alone, and gets the tokens it would have got."""
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4)
    executor = Logged(config)
    core = EngineCore(executor, config)
    prompts = {"r0": [1, 2, 3], "r1": [4, 5, 6, 7, 8]}
    for name, prompt in prompts.items():
        core.add_request(make_request(name, prompt, max_tokens=6))
    submit = executor.submit

    def submit_failing(step: StepInput) -> PendingOutput:
        pending, number = submit(step), executor.num_steps

        def wait() -> StepOutput:
            output = pending()
            if number in (2, 3):
                raise RuntimeError("the device is ill")
            return output

        return wait

    executor.submit = submit_failing  # type: ignore[method-assign]
    collector = Collector()
    while core.has_unfinished():
        collector.take(core.step())
        core.check_integrity()
    assert executor.scheduled[:5] == [["r0", "r1"]] * 3 + [["r0"], ["r1"]]
    assert collector.token_ids == {name: run_alone(prompt) for name, prompt in prompts.items()}


def test_who_was_dropped_by_a_step_in_vain_is_dropped_again() -> None:
    """The core cannot know how far a forgotten step came: to drop a request that is not known means nothing."""
    stop = run_alone([2, 2, 3])[2]
    executor, _, core = run({"max_tokens": 2}, {"max_tokens": 6, "stop_token_ids": [stop]})
    assert executor.dropped == [[], [], [], ["r0"]]
    core.add_request(make_request("r2", [1], max_tokens=1))
    core.step()
    assert executor.dropped[-1] == ["r0", "r1"]


def run_alone(prompt: list[int]) -> list[int]:
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4)
    core = EngineCore(FakeExecutor(config), config)
    core.add_request(make_request("r", prompt, max_tokens=6))
    collector = Collector()
    while core.has_unfinished():
        collector.take(core.step())
    return collector.token_ids["r"]


def test_an_interrupt_while_nothing_is_waited_for_loses_no_output() -> None:
    """The last token is there; behind it, a step is waited for whose results nobody needs."""
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4)
    executor = Logged(config)
    core = EngineCore(executor, config)
    stop = run_alone([1, 2, 3])[0]
    core.add_request(make_request("r0", [1, 2, 3], max_tokens=6, stop_token_ids=[stop]))
    submit, num_submitted = executor.submit, 0

    def interrupted(step: StepInput) -> PendingOutput:
        nonlocal num_submitted
        pending, num_submitted = submit(step), num_submitted + 1

        def wait() -> StepOutput:
            raise KeyboardInterrupt

        return pending if num_submitted == 1 else wait

    executor.submit = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        core.step()
    [output] = core.step()
    assert (output.new_token_ids, output.finish_reason) == ([stop], "stop")
    assert core.step() == []


def test_a_suspect_runs_alone_where_all_places_are_taken() -> None:
    """It may have come back from a crash when others run already."""
    config = SchedulerConfig(num_blocks=40, max_model_len=40, block_size=4, max_num_seqs=2)
    executor = FakeExecutor(config)
    core = EngineCore(executor, config)
    for name in ("r0", "r1"):
        core.add_request(make_request(name, [1, 2, 3], max_tokens=6))
    core.step()
    core.add_request(make_request("suspect", [4, 5], max_tokens=3, is_suspect=True))
    core.step()
    assert executor.scheduled[-1] == ["suspect"]
    collector = Collector()
    while core.has_unfinished():
        collector.take(core.step())
        core.check_integrity()
    assert {end.finish_reason for end in collector.finished.values()} == {"length"}
