"""The engine core over a worker without a model: every schedule gives every request the same tokens."""

import importlib
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import count

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightvllm.engine import prefix_cache
from lightvllm.engine.core import EngineCore
from lightvllm.engine.policy import POLICIES
from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepInput
from tests.engine.fakes import Collector, FakeExecutor, expected_output, logprobs_at, make_request

pytestmark = pytest.mark.usefixtures("stopped_clock")


def make_core(runs_ahead: bool = False, **kwargs: object) -> tuple[EngineCore, FakeExecutor]:
    defaults = {"num_blocks": 12, "max_model_len": 40, "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 8}
    config = SchedulerConfig(**{**defaults, **kwargs})  # type: ignore[arg-type]
    executor = FakeExecutor(config, runs_ahead=runs_ahead)
    return EngineCore(executor, config), executor


def run(core: EngineCore, collector: Collector, max_steps: int = 2000) -> None:
    """Step until nothing is left; the engine must then be as good as new."""
    for _ in range(max_steps):
        if not core.has_unfinished():
            break
        collector.take(core.step())
        core.check_integrity()
    assert not core.has_unfinished(), f"{list(core.scheduler.requests)} left after {max_steps} steps"
    assert core.stats().num_used_blocks == 0
    assert core.step() == []


def check_output(core: EngineCore, collector: Collector, request: Request) -> None:
    config = core.scheduler.config
    tokens, finish_reason, stop_reason = expected_output(
        request, config.max_model_len, config.num_blocks * config.block_size
    )
    end = collector.finished[request.request_id]
    assert end.error is None
    assert collector.token_ids[request.request_id] == tokens
    assert (end.finish_reason, end.stop_reason) == (finish_reason, stop_reason)
    prompt = request.prompt_token_ids
    if request.sampling_params.logprobs is not None:
        entries = [logprobs_at([*prompt, *tokens[:index]]) for index in range(len(tokens))]
        assert collector.logprobs[request.request_id] == entries
    if request.sampling_params.prompt_logprobs is not None:
        entries = [logprobs_at(prompt[:count]) for count in range(1, len(prompt))]
        assert collector.prompt_logprobs[request.request_id] == entries


def fail_when(condition: Callable[[StepInput], bool]) -> Callable[[StepInput], None]:
    def crash(step: StepInput) -> None:
        if condition(step):
            raise RuntimeError("the model broke")

    return crash


def test_runs_without_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, numpy=None)\n"
        "import lightvllm.engine.core\n"
        "assert not [name for name in sys.modules if name.startswith(('torch.', 'numpy.', 'transformers'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_request_runs_to_its_end() -> None:
    core, executor = make_core()
    request = make_request("a", [1, 2, 3, 4, 5], max_tokens=6, logprobs=1, prompt_logprobs=1)
    core.add_request(request)
    collector = Collector()
    run(core, collector)
    check_output(core, collector, request)
    assert executor.num_steps == 6
    core.shutdown()
    assert executor.is_shut_down


def test_a_step_of_nothing_does_not_reach_the_executor() -> None:
    core, executor = make_core()
    assert core.step() == []
    core.add_request(make_request("a", [1]))
    core.abort(["a"])
    assert core.step() == []
    assert executor.num_steps == 0


def test_outputs_can_travel() -> None:
    core, _ = make_core()
    core.add_request(make_request("a", [1, 2], max_tokens=1, logprobs=1, prompt_logprobs=0))
    outputs = core.step()
    encoded = msgspec.msgpack.encode(outputs)
    assert msgspec.msgpack.decode(encoded, type=list[CoreOutput]) == outputs


def test_stats_follow_the_engine() -> None:
    core, _ = make_core(num_blocks=4, max_num_seqs=4)
    for name in ("a", "b", "c"):
        core.add_request(make_request(name, [ord(name)] * 8, max_tokens=3))
    collector = Collector()
    collector.take(core.step())
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks, stats.kv_cache_usage) == (2, 1, 4, 1.0)
    run(core, collector)
    stats = core.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_blocks, stats.peak_num_used_blocks) == (0, 0, 0, 4)
    assert stats.num_preemptions == 1
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits, stats.prefix_cache_hit_rate) == (24, 0, 0.0)


def test_the_one_request_of_a_failed_step_is_ended() -> None:
    core, executor = make_core()
    core.add_request(make_request("a", [1, 2, 3]))
    core.step()
    executor.crash = fail_when(lambda step: True)
    assert core.step() == [CoreOutput("a", [], finish_reason="error", error="RuntimeError: the model broke")]
    core.check_integrity()
    assert not core.has_unfinished()
    executor.crash = lambda step: None
    good = make_request("a", [1, 2, 3], max_tokens=4)
    core.add_request(good)
    collector = Collector()
    run(core, collector)
    check_output(core, collector, good)


def test_the_culprit_among_several_is_found_and_the_others_go_on() -> None:
    core, executor = make_core()
    requests = [make_request(f"r{index}", [9] * 6 + [index], max_tokens=10) for index in range(4)]
    collector = Collector()
    for request in requests:
        core.add_request(request)
    for _ in range(3):
        collector.take(core.step())
    executor.crash = fail_when(lambda step: "r2" in step.request_ids)
    num_steps = executor.num_steps
    run(core, collector)
    assert collector.finished["r2"].error == "RuntimeError: the model broke"
    assert collector.token_ids["r2"] == expected_output(requests[2], 40, 48)[0][:3]
    for index in (0, 1, 3):
        check_output(core, collector, requests[index])
    # The failed step, one step for each alone, and then together again.
    assert executor.scheduled[num_steps : num_steps + 6] == [
        ["r0", "r1", "r2", "r3"],
        ["r0"],
        ["r1"],
        ["r2"],
        ["r3"],
        ["r0", "r1", "r3"],
    ]


def test_a_failure_that_needs_company_blames_nobody() -> None:
    core, executor = make_core()
    requests = [make_request(f"r{index}", [index] * 9, max_tokens=7) for index in range(3)]
    executor.crash = fail_when(lambda step: len(step.request_ids) > 1)
    collector = Collector()
    for request in requests:
        core.add_request(request)
    run(core, collector)
    for request in requests:
        check_output(core, collector, request)


def test_suspects_of_a_crash_run_alone_and_before_all_others() -> None:
    core, executor = make_core(num_blocks=20)
    requests = [make_request("a", [1] * 6, max_tokens=8), make_request("b", [2] * 6, max_tokens=8)]
    collector = Collector()
    for request in requests:
        core.add_request(request)
    collector.take(core.step())
    # Each takes two steps to its first token. One is aborted before its turn.
    requests += [make_request(f"s{i}", [3 + i] * 20, max_tokens=4, is_suspect=True) for i in range(3)]
    for request in requests[2:]:
        core.add_request(request)
    core.abort(["s1"])
    run(core, collector)
    assert executor.scheduled[:5] == [["a", "b"], ["s0"], ["s0"], ["s2"], ["s2"]]
    assert executor.scheduled[5] == ["a", "b", "s0", "s2"]
    for request in [*requests[:3], requests[-1]]:
        check_output(core, collector, request)


def test_a_suspect_gets_its_room_from_others() -> None:
    core, executor = make_core(num_blocks=6, max_num_batched_tokens=4, max_num_seqs=3)
    long = make_request("long", list(range(20)), max_tokens=2, arrival_time=1.0)
    small = [make_request(f"r{index}", [30 + index] * 3, max_tokens=12, arrival_time=index) for index in range(2)]
    collector = Collector()
    for request in small:
        core.add_request(request)
    collector.take(core.step())
    collector.take(core.step())
    executor.crash = fail_when(lambda step: len(step.request_ids) == 2)
    collector.take(core.step())
    executor.crash = lambda step: None
    core.add_request(long)
    run(core, collector)
    for request in (*small, long):
        check_output(core, collector, request)


def test_an_interrupt_passes_and_leaves_the_engine_usable() -> None:
    core, executor = make_core()
    requests = [make_request(name, [5] * 9, max_tokens=6) for name in ("a", "b")]
    collector = Collector()
    for request in requests:
        core.add_request(request)
    collector.take(core.step())

    def interrupt(step: StepInput) -> None:
        raise KeyboardInterrupt

    executor.crash = interrupt
    with pytest.raises(KeyboardInterrupt):
        core.step()
    core.check_integrity()
    executor.crash = lambda step: None
    run(core, collector)
    for request in requests:
        check_output(core, collector, request)


def test_an_interrupt_does_not_leave_the_first_in_line_waiting() -> None:
    core, executor = make_core(num_blocks=5)
    requests = [make_request(f"r{index}", [index] * 12, max_tokens=3) for index in range(2)]
    collector = Collector()
    for request in requests:
        core.add_request(request)
    collector.take(core.step())  # there is no room for the second

    def interrupt(step: StepInput) -> None:
        raise KeyboardInterrupt

    executor.crash = interrupt
    with pytest.raises(KeyboardInterrupt):
        core.step()
    executor.crash = lambda step: None
    run(core, collector)
    for request in requests:
        check_output(core, collector, request)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        *(("scheduler.Scheduler._hand_out", call) for call in (1, 2, 3)),
        *(("scheduler.Scheduler._grow", call) for call in (1, 2)),
        *(("prefix_cache.PrefixCache.register", call) for call in (1, 2)),
        *(("request.Request.append", call) for call in (1, 2, 3, 5)),
        ("scheduler.Scheduler._admit", 1),
    ],
)
def test_an_interrupt_of_the_scheduler_leaves_the_engine_usable(
    place: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, executor = make_core()
    executor.forgives_unknown_drops = True
    collector = Collector()
    requests = [make_request(name, [1, 2, 3, 4, 5, 6], max_tokens=9) for name in ("a", "b", "c")]
    for request in requests:
        core.add_request(request)
    collector.take(core.step())
    requests.append(make_request("d", [1, 2, 3, 4, 9, 9], max_tokens=9))
    core.add_request(requests[-1])

    owner = getattr(importlib.import_module(f"lightvllm.engine.{place.split('.')[0]}"), place.split(".")[1])
    name, num_calls = place.split(".")[2], count(1)
    original = getattr(owner, name)

    def interrupted(*args: object) -> object:
        result = original(*args)
        if next(num_calls) == call:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(core, collector)
    core.check_integrity()
    if name == "append":  # the tokens of the step that were taken in by then are lost to the reader
        core.abort([request.request_id for request in requests])
        requests = [make_request("e", [1, 2, 3, 4, 5, 6], max_tokens=9)]
        core.add_request(requests[0])
    run(core, collector)
    for request in requests:
        check_output(core, collector, request)


def test_a_request_added_again_after_a_crash_goes_on_with_the_same_tokens() -> None:
    core, _ = make_core()
    request = make_request("a", [1, 2, 3], max_tokens=9)
    core.add_request(request)
    collector = Collector()
    for _ in range(4):
        collector.take(core.step())
    other, _ = make_core()
    again = make_request("a", [1, 2, 3], max_tokens=9, output_token_ids=collector.token_ids["a"])
    other.add_request(again)
    run(other, collector)
    check_output(other, collector, again)


def random_request(rng: random.Random, request_id: str, limit: int) -> Request:
    """Any request of at most `limit` tokens; its prompt is a piece of one of two texts, so that many begin alike.

    Drawn from one seed, not field by field by hypothesis, which would spend all its choices on a few requests.
    """
    text = rng.choice([[0] * 16, [0, 1, 2, 3] * 4])
    prompt = text[: rng.randint(0, min(16, limit - 4))] + rng.choices([0, 1], k=rng.randint(1, 3))
    max_tokens = rng.choice([None, rng.randint(1, limit - len(prompt)), limit - len(prompt)])
    is_plain = rng.random() < 0.8  # or a step could hardly ever be submitted behind another
    return make_request(
        request_id,
        prompt,
        seed=rng.randint(0, 3),
        eos_token_ids=rng.choice([[], [1], [1, 2]]),
        priority=rng.randint(-1, 1),
        arrival_time=float(rng.randint(0, 9)),
        cache_salt=rng.choice([None, None, None, "a", "b"]),
        max_tokens=max_tokens,
        min_tokens=0 if is_plain else rng.randint(0, max_tokens or 3),
        ignore_eos=rng.random() < 0.3,
        stop_token_ids=rng.sample(range(50), rng.choice([0, 0, 3])),
        logprobs=None if is_plain else rng.choice([None, 0]),
        prompt_logprobs=None if is_plain else rng.choice([None, None, 0]),
    )


def colliding_hash(num_hashes: int) -> Callable[[bytes, list[int], int], bytes]:
    """A hash of so few values that different blocks often have the same."""
    original = prefix_cache.hash_block
    return lambda parent_hash, token_ids, seed: bytes([original(parent_hash, token_ids, 0)[0] % num_hashes])


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    """Room for one request of the longest kind, and little more."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    max_model_len = draw(st.integers(8, 40))
    return SchedulerConfig(
        num_blocks=-(-(max_model_len - 1) // block_size) + draw(st.integers(0, 8)),
        max_model_len=max_model_len,
        block_size=block_size,
        max_num_seqs=draw(st.integers(1, 8)),
        max_num_batched_tokens=draw(st.sampled_from([1, 3, 8, 16, 64])),
        enable_prefix_caching=draw(st.sampled_from([True, True, True, False])),
        policy=draw(st.sampled_from(list(POLICIES))),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 3])),
    )


seeds = st.integers(0, 2**32)


class EngineMachine(RuleBasedStateMachine):
    """Random requests, aborts, failures and resets between, and in the middle of, random steps."""

    # How long everything may take: each step but the failed ones gives tokens, and failures are drawn, so not endless.
    MAX_STEPS = 4000

    @initialize(
        config=configs(),
        tokens_per_step=st.sampled_from([1, 1, 3]),
        seed=st.integers(0, 99),
        num_hashes=st.sampled_from([None, None, 1, 4]),
        runs_ahead=st.booleans(),
    )
    def start(
        self, config: SchedulerConfig, tokens_per_step: int, seed: int, num_hashes: int | None, runs_ahead: bool
    ) -> None:
        self.executor = FakeExecutor(config, seed, runs_ahead)
        self.executor.tokens_per_step = 1 if runs_ahead else tokens_per_step
        self.core = EngineCore(self.executor, config)
        self.collector = Collector()
        self.requests: dict[str, Request] = {}
        self.aborted: set[str] = set()
        self.poisoned: set[str] = set()
        self.patch = pytest.MonkeyPatch()
        if num_hashes is not None:
            self.patch.setattr(prefix_cache, "hash_block", colliding_hash(num_hashes))
        self.executor.crash = self.crash_of_the_poisoned

    @rule(seed=seeds, count=st.integers(1, 5))
    def add(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            request = random_request(rng, f"r{len(self.requests)}", self.core.scheduler.config.max_model_len)
            self.core.add_request(request)
            self.requests[request.request_id] = request

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        alive = sorted(self.core.scheduler.requests)
        request_ids = data.draw(st.lists(st.sampled_from([*alive, "nobody"]), unique=True, max_size=3))
        outputs = self.core.abort(request_ids)
        assert {output.request_id for output in outputs} == set(request_ids) - {"nobody"}
        self.collector.take(outputs)
        self.aborted.update(output.request_id for output in outputs)

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.oldest_is_served(self.core.step)

    def settle(self) -> list[CoreOutput]:
        """Take in what is under way, and leave nothing under way."""
        outputs = []
        self.core.runs_ahead = False
        while self.core.under_way():
            outputs += self.core.step()
        self.core.runs_ahead = self.executor.runs_ahead
        self.collector.take(outputs)
        return outputs

    @rule(data=st.data())
    def abort_in_flight(self, data: st.DataObject) -> None:
        self.settle()
        scheduler = self.core.scheduler
        step = scheduler.schedule()
        if step.request_ids:
            victims = data.draw(st.lists(st.sampled_from(step.request_ids), unique=True, max_size=3))
            self.aborted.update(victims)
            ends = scheduler.abort(victims)
            if data.draw(st.booleans()) and not self.poisoned.intersection(step.request_ids):
                self.collector.take(scheduler.update(self.executor.execute(step)))
            else:
                self.executor.fail_halfway(step)
                outputs = scheduler.fail("lost")
                self.poisoned.update(step.request_ids if len(step.request_ids) == 1 else [])
                self.collector.take(outputs)
            self.collector.take(ends)

    @rule(company=st.booleans())
    def fail_once(self, company: bool) -> None:
        """Whoever runs alone is blamed; in company nobody is, unless a step after it fails too."""
        self.settle()
        failed: list[str] = []

        def crash(step: StepInput) -> None:
            if not failed and (len(step.request_ids) > 1) == company:
                failed.extend(step.request_ids)
                raise RuntimeError("once")

        self.executor.crash = crash
        outputs = self.core.step()
        self.executor.crash = self.crash_of_the_poisoned
        self.collector.take(outputs)
        if self.executor.runs_ahead:  # the step that failed may be the one behind
            outputs = [output for output in outputs + self.settle() if output.error == "RuntimeError: once"]
        if failed and not company:
            assert [output.request_id for output in outputs] == failed
            self.poisoned.update(failed)

    @precondition(lambda self: self.core.has_unfinished())
    @rule(data=st.data())
    def poison(self, data: st.DataObject) -> None:
        """From now on, every step with this request fails."""
        self.poisoned.add(data.draw(st.sampled_from(sorted(self.core.scheduler.requests))))

    def crash_of_the_poisoned(self, step: StepInput) -> None:
        if self.poisoned.intersection(step.request_ids):
            raise RuntimeError("poisoned")

    @precondition(lambda self: self.core.has_unfinished())
    @rule(data=st.data())
    def error(self, data: st.DataObject) -> None:
        """From now on, this request fails on its own."""
        request_id = data.draw(st.sampled_from(sorted(self.core.scheduler.requests)))
        self.executor.errors[request_id] = f"{request_id} is ill"

    @rule()
    def interrupt(self) -> None:
        def crash(step: StepInput) -> None:
            raise KeyboardInterrupt

        self.settle()
        if self.core.has_unfinished():
            self.executor.crash = crash
            with pytest.raises(KeyboardInterrupt):
                self.core.step()
            self.executor.crash = self.crash_of_the_poisoned

    @rule()
    def reset_prefix_cache(self) -> None:
        self.core.reset_prefix_cache()
        assert len(self.core.scheduler.prefix_cache) == 0

    @invariant()
    def is_sound(self) -> None:
        if hasattr(self, "core"):
            self.core.check_integrity()
            self.salts_are_apart()

    def oldest_is_served(self, step: Callable[[], list[CoreOutput]]) -> None:
        """Nobody starves: whoever is first in line gets tokens in every step, unless a failure is being traced."""
        scheduler = self.core.scheduler
        first = min(scheduler.running, key=lambda request: request.order, default=None)
        is_tracing = bool(scheduler._suspects)
        num_steps = self.executor.num_steps
        had_work = self.core.has_unfinished()
        self.collector.take(step())
        if self.executor.runs_ahead:
            return
        assert self.executor.num_steps == num_steps + had_work
        if first is not None and not is_tracing:
            assert self.executor.scheduled[-1][0] == first.request_id

    def salts_are_apart(self) -> None:
        owners: dict[int, str | None] = {}
        for request in self.core.scheduler.requests.values():
            for block_id in request.block_ids:
                assert owners.setdefault(block_id, request.cache_salt) == request.cache_salt

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        try:
            run(self.core, self.collector, self.MAX_STEPS)
            assert set(self.collector.finished) == set(self.requests), "a request was lost"
            for request_id, request in self.requests.items():
                self.check_end(request_id, request)
        finally:
            self.patch.undo()

    def check_end(self, request_id: str, request: Request) -> None:
        config = self.core.scheduler.config
        expected = expected_output(request, config.max_model_len, config.num_blocks * config.block_size)[0]
        tokens = self.collector.token_ids[request_id]
        finish_reason = self.collector.finished[request_id].finish_reason
        assert tokens == expected[: len(tokens)]
        if finish_reason == "abort":
            assert request_id in self.aborted
        elif finish_reason == "error":
            assert request_id in self.poisoned or request_id in self.executor.errors
        else:
            check_output(self.core, self.collector, request)


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)


@settings(max_examples=100, deadline=None)
@given(
    config=configs(),
    seed=seeds,
    count=st.integers(1, 12),
    tokens_per_step=st.sampled_from([1, 1, 2]),
    runs_ahead=st.booleans(),
)
def test_any_schedule_gives_the_same_tokens(
    config: SchedulerConfig, seed: int, count: int, tokens_per_step: int, runs_ahead: bool
) -> None:
    """All at once, in any configuration: what comes out is what each would give alone."""
    rng = random.Random(seed)
    tokens_per_step = 1 if runs_ahead else tokens_per_step
    executor = FakeExecutor(config, runs_ahead=runs_ahead)
    executor.tokens_per_step = tokens_per_step
    core = EngineCore(executor, config)
    requests = [random_request(rng, f"r{index}", config.max_model_len) for index in range(count)]
    for request in requests:
        core.add_request(request)
    collector = Collector()
    run(core, collector)
    for request in requests:
        check_output(core, collector, request)
