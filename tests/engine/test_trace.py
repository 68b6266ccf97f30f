"""What the traces say is what happened: a reader who only follows them always has the scheduler's own picture."""

import random

import pytest

from lightvllm.engine.core import EngineCore
from lightvllm.engine.request import CoreOutput
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import StepInput, StepOutput
from lightvllm.engine.trace import MAX_TRACED_WAITING, BlockChanges, FinishedRequest, StepTrace, StepTracer
from tests.engine.fakes import FakeExecutor, make_request


class Watched(FakeExecutor):
    """Tells the tracer of each step where the core process does: after it is scheduled."""

    tracer: StepTracer | None = None

    def execute(self, step: StepInput) -> StepOutput:
        if self.tracer is not None:
            self.tracer.before(step)
        return super().execute(step)


class Reader:
    """Follows the traces, as the web page does."""

    def __init__(self) -> None:
        self.tables: dict[str, list[int]] = {}
        self.cached: set[int] = set()

    def take(self, blocks: BlockChanges) -> None:
        if blocks.is_snapshot:
            self.tables, self.cached = {}, set()
        for request_id in blocks.released:
            del self.tables[request_id]
        for request_id, block_ids in blocks.tables.items():
            self.tables.setdefault(request_id, []).extend(block_ids)
        assert self.cached.isdisjoint(blocks.cached), "said to be cached twice"
        self.cached |= set(blocks.cached)
        assert self.cached.issuperset(blocks.uncached), "uncached, but never cached"
        self.cached -= set(blocks.uncached)


class Engine:
    """An engine core that somebody watches."""

    def __init__(self, **kwargs: object) -> None:
        defaults = {"num_blocks": 12, "max_model_len": 40, "block_size": 4}
        defaults |= {"max_num_batched_tokens": 16, "max_num_seqs": 8}
        config = SchedulerConfig(**{**defaults, **kwargs})  # type: ignore[arg-type]
        self.executor = Watched(config)
        self.core = EngineCore(self.executor, config)
        self.executor.tracer = self.tracer = StepTracer(self.core.scheduler)
        self.reader = Reader()

    def add(self, request_id: str, prompt: list[int], **kwargs: object) -> None:
        self.core.add_request(make_request(request_id, prompt, **kwargs))

    def step(self) -> StepTrace:
        return self.check(self.core.step())

    def check(self, outputs: list[CoreOutput]) -> StepTrace:
        """The next trace, after which its reader must know all there is."""
        trace = self.tracer.after(outputs, 0.5)
        self.reader.take(trace.blocks)
        scheduler = self.core.scheduler
        assert self.reader.tables == {request.request_id: request.block_ids for request in scheduler.running}
        blocks = range(scheduler.config.num_blocks)
        assert self.reader.cached == {block_id for block_id in blocks if block_id in scheduler.prefix_cache}
        assert trace.stats == self.core.stats()
        return trace


def batch(trace: StepTrace) -> list[tuple[str, str, int, int, int, int]]:
    return [(r.request_id, r.kind, r.start, r.num_tokens, r.total, r.num_cached) for r in trace.batch]


def test_a_prompt_comes_in_chunks_and_then_token_by_token() -> None:
    engine = Engine()
    engine.add("a", list(range(20)), max_tokens=2)
    first, second, third = engine.step(), engine.step(), engine.step()
    assert batch(first) == [("a", "prefill", 0, 16, 20, 0)]
    assert batch(second) == [("a", "prefill", 16, 4, 20, 0)]
    assert batch(third) == [("a", "decode", 20, 1, 21, 0)]
    assert [trace.num_output_tokens for trace in (first, second, third)] == [0, 1, 1]
    assert [trace.step for trace in (first, second, third)] == [1, 2, 3]
    assert third.finished == [FinishedRequest("a", "length")]
    assert third.blocks.released == ["a"]
    assert third.preempted == []
    assert third.seconds == 0.5


def test_a_prompt_of_one_token_is_a_prefill() -> None:
    engine = Engine()
    engine.add("a", [1], max_tokens=2)
    assert [entry.kind for entry in engine.step().batch + engine.step().batch] == ["prefill", "decode"]


def test_what_was_generated_before_a_crash_is_a_prefill_too() -> None:
    engine = Engine()
    engine.add("a", [1, 2, 3, 4], output_token_ids=list(range(20)), max_tokens=30)
    assert batch(engine.step()) == [("a", "prefill", 0, 16, 24, 0)]
    assert batch(engine.step()) == [("a", "prefill", 16, 8, 24, 0)]


def test_the_first_trace_is_a_snapshot_with_the_limits_and_the_others_are_not() -> None:
    engine = Engine()
    engine.add("a", [1, 2, 3], max_tokens=3)
    first, second = engine.step(), engine.step()
    assert first.blocks.is_snapshot
    assert first.config == engine.core.scheduler.config
    assert not second.blocks.is_snapshot
    assert second.config is None


def test_a_request_that_ends_in_its_only_step_leaves_its_cached_blocks() -> None:
    engine = Engine()
    engine.add("a", [9], max_tokens=1)
    engine.step()
    engine.add("b", list(range(8)), max_tokens=1)
    trace = engine.step()
    assert not trace.blocks.is_snapshot
    assert trace.blocks.tables == {}
    assert len(trace.blocks.cached) == 2
    assert trace.finished == [FinishedRequest("b", "length")]


def test_hits_of_the_prefix_cache_are_told_once() -> None:
    engine = Engine()
    engine.add("a", list(range(9)), max_tokens=3)
    engine.step()
    engine.add("b", list(range(9)), max_tokens=3)
    assert batch(engine.step())[1] == ("b", "prefill", 8, 1, 9, 8)
    assert engine.reader.tables["a"][:2] == engine.reader.tables["b"][:2]
    assert batch(engine.step())[1] == ("b", "decode", 9, 1, 10, 0)


def test_a_preempted_request_is_named_and_waits_again() -> None:
    engine = Engine(num_blocks=4)
    engine.add("a", list(range(8)), max_tokens=8)
    engine.add("b", list(range(20, 24)), max_tokens=8)
    traces = [engine.step()]
    while not traces[-1].preempted:
        traces.append(engine.step())
    assert traces[-1].preempted == ["b"]
    assert traces[-1].blocks.released == ["b"]
    assert [(waiting.request_id, waiting.is_preempted) for waiting in traces[-1].waiting] == [("b", True)]
    while engine.core.has_unfinished():
        traces.append(engine.step())
    again = next(entry for trace in traces[::-1] for entry in trace.batch if entry.kind == "prefill")
    assert again.request_id == "b"
    assert again.total > 4, "what it had generated is computed again with its prompt"


def test_an_abort_between_steps_is_told_without_a_step() -> None:
    engine = Engine()
    engine.add("a", [1, 2, 3])
    engine.step()
    outputs = engine.core.abort(["a"])
    trace = engine.check(outputs)
    assert trace.batch == []
    assert trace.step == 1
    assert trace.finished == [FinishedRequest("a", "abort")]
    assert trace.blocks.released == ["a"]


def test_an_abort_whose_output_was_not_shown_is_told_with_the_next_step() -> None:
    engine = Engine()
    engine.add("a", [1, 2, 3])
    engine.add("b", [4, 5, 6])
    engine.step()
    engine.core.abort(["a"])
    assert engine.step().finished == [FinishedRequest("a", "abort")]


def test_a_long_queue_is_cut_but_counted() -> None:
    engine = Engine(max_num_seqs=1)
    for number in range(MAX_TRACED_WAITING + 10):
        engine.add(f"r{number}", [1, 2])
    trace = engine.step()
    assert [waiting.request_id for waiting in trace.waiting] == [f"r{n}" for n in range(1, MAX_TRACED_WAITING + 1)]
    assert trace.stats.num_waiting == MAX_TRACED_WAITING + 9


def test_a_reset_of_the_prefix_cache_gives_a_snapshot() -> None:
    engine = Engine()
    engine.add("a", list(range(9)), max_tokens=9)
    engine.step()
    engine.core.reset_prefix_cache()
    trace = engine.step()
    assert trace.blocks.is_snapshot
    assert trace.blocks.cached == []


def test_who_comes_later_gets_all_with_a_snapshot() -> None:
    engine = Engine()
    engine.add("a", list(range(9)), max_tokens=4)
    engine.step()
    snapshot = engine.tracer.snapshot()
    assert snapshot.batch == []
    late = Reader()
    late.take(snapshot.blocks)
    assert (late.tables, late.cached) == (engine.reader.tables, engine.reader.cached)
    late.take(engine.step().blocks)
    assert (late.tables, late.cached) == (engine.reader.tables, engine.reader.cached)


@pytest.mark.parametrize("seed", range(25))
def test_whatever_happens_the_reader_knows_it(seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine(num_blocks=rng.choice([8, 12, 30]), enable_prefix_caching=seed % 5 > 0)
    shared = [rng.randrange(50) for _ in range(8)]
    num_snapshots = num_resets = num_preempted = 0
    for number in range(150):
        if rng.random() < 0.4:
            prompt = shared[: rng.randrange(9)] + [rng.randrange(50) for _ in range(rng.randrange(1, 12))]
            engine.add(f"r{number}", prompt, max_tokens=rng.randrange(1, 13))
        aborted = []
        if rng.random() < 0.1 and engine.core.scheduler.requests:
            aborted = engine.core.abort([rng.choice(list(engine.core.scheduler.requests))])
        if rng.random() < 0.03:
            engine.core.reset_prefix_cache()
            num_resets += 1
        running = [request.request_id for request in engine.core.scheduler.running]
        engine.executor.errors = {running[-1]: "of its own"} if running and rng.random() < 0.05 else {}
        engine.executor.crash = fail_once if rng.random() < 0.05 else lambda step: None
        trace = engine.check(aborted + engine.core.step())
        num_snapshots += trace.blocks.is_snapshot
        num_preempted += len(trace.preempted)
    assert num_snapshots <= 1 + num_resets, "snapshots are for what the changes cannot tell"
    assert num_preempted > 0 or engine.core.scheduler.config.num_blocks == 30


def fail_once(step: StepInput) -> None:
    raise RuntimeError("the step failed")
