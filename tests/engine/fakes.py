"""A worker without a model, as strict as a real one: it believes nothing that `StepInput` does not say.

Its KV cache is simulated: computing a token writes into its slot a fingerprint of the whole prefix up to it, as the
keys and values of a real model depend on the whole prefix. Before it samples, it reads the slots of the request back
through the block table. A block shared wrongly, overwritten too early or never written is seen there.
"""

import random
import zlib
from array import array
from collections.abc import Callable, Collection

from lightvllm.engine.request import CoreOutput, Request
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.step import NewRequest, PendingOutput, StepInput, StepOutput, TokenLogprobs
from lightvllm.sampling_params import SamplingParams

VOCAB_SIZE = 50
RUBBISH = 2**32 - 1


def next_token(token_ids: list[int], seed: int) -> int:
    """The token after these: a pure function, so that every schedule must give the same output."""
    return zlib.crc32(array("I", [seed & RUBBISH, *token_ids]).tobytes()) % VOCAB_SIZE


def fingerprints(token_ids: list[int]) -> list[int]:
    """What the KV cache holds at each position."""
    values, value = [], 0
    for token_id in token_ids:
        value = zlib.crc32(array("I", [value, token_id]).tobytes()) // 2 + 1  # 0 is a slot never written
        values.append(value)
    return values


def logprobs_at(token_ids: list[int]) -> TokenLogprobs:
    """Log-probabilities that tell at which position, of which prefix, they were computed."""
    digest = zlib.crc32(array("I", token_ids).tobytes()) % 4096  # in the vocabulary of the default model, too
    return TokenLogprobs([len(token_ids), digest], [0.0, 0.0], 1)


def expected_output(request: Request, max_model_len: int, capacity: int) -> tuple[list[int], str, int | None]:
    """Output tokens, finish reason and stop reason of a request that nothing but its parameters ends."""
    params = request.sampling_params
    prompt = request.prompt_token_ids
    limit = max_model_len - len(prompt)
    if params.max_tokens is None:
        limit = min(limit, capacity + 1 - len(prompt))
    else:
        limit = min(limit, params.max_tokens)
    output: list[int] = []
    while True:
        token_id = next_token(prompt + output, request.seed)
        output.append(token_id)
        if len(output) >= params.min_tokens:
            if token_id in request.eos_token_ids:
                return output, "stop", None
            if token_id in (params.stop_token_ids or []):
                return output, "stop", token_id
        if len(output) == limit:
            return output, "length", None


def make_request(request_id: str, prompt: list[int], **kwargs: object) -> Request:
    """A request without a limit of its own; what is no argument of `Request` goes to its `SamplingParams`."""
    own = ("seed", "eos_token_ids", "output_token_ids", "priority", "arrival_time", "cache_salt", "is_suspect")
    args = {name: kwargs.pop(name) for name in own if name in kwargs}
    return Request(
        request_id, prompt, SamplingParams(**{"max_tokens": None, **kwargs}), **{"seed": 0, "arrival_time": 0.0, **args}
    )  # type: ignore[arg-type]


class Violation(BaseException):
    """The step breaks the contract. Not an Exception, or the engine would take it for a failure of the step."""


class KnownRequest:
    """What the worker keeps of a request."""

    def __init__(self, new: NewRequest) -> None:
        self.token_ids = list(new.token_ids)
        self.num_prompt_tokens = new.num_prompt_tokens
        self.num_computed_tokens = new.num_computed_tokens
        self.block_ids = list(new.block_ids)
        self.params = new.sampling_params
        self.seed = new.seed


class FakeExecutor:
    """Checks every step against what it knows, and samples `next_token`.

    Attributes:
        crash: called with each step; whatever it raises fails the step, half of it done.
        errors: request id -> reason: these fail on their own whenever they are scheduled.
        tokens_per_step: sampled at once, as a speculating worker would.
        runs_ahead: a step may be submitted before the results of the one before were asked for.
    """

    def __init__(self, config: SchedulerConfig, seed: int = 0, runs_ahead: bool = False) -> None:
        self.config = config
        self.runs_ahead = runs_ahead
        self.crash: Callable[[StepInput], None] = lambda step: None
        self.errors: dict[str, str] = {}
        self.tokens_per_step = 1
        self.num_steps = 0
        self.is_shut_down = False
        self.is_asleep: set[str] = set()
        self.forgives_unknown_drops = False  # where a step was cut short before it came here
        self.scheduled: list[list[str]] = []
        self.num_tokens: list[int] = []
        self._random = random.Random(seed)
        self._known: dict[str, KnownRequest] = {}
        self._unsure: set[str] = set()  # ids a failed step was about
        self._before = StepInput()  # the step before
        self._spoilt_before: set[int] = set()
        self._spoilt: set[int] = set()  # slots of this step that hold rubbish, as a request failed
        self._slots = [0] * (config.num_blocks * config.block_size)

    def submit(self, step: StepInput) -> PendingOutput:
        output = self.execute(step)
        return lambda: output

    def execute(self, step: StepInput) -> StepOutput:
        assert not self.is_asleep, "a step of a worker that sleeps"
        self.num_steps += 1
        self.scheduled.append(list(step.request_ids))
        self.num_tokens.append(sum(step.num_scheduled_tokens))
        try:
            self.crash(step)
        except BaseException:
            self.fail_halfway(step)
            raise
        try:
            self._take_note(step)
            self._check_limits(step)
            self._write(step)
            return self._sample(step)
        except AssertionError as error:
            raise Violation(*error.args) from error

    def sleep(self, level: int) -> None:
        self.is_asleep = {"weights", "kv_cache"}
        self._slots = [RUBBISH] * len(self._slots)

    def wake_up(self, tags: Collection[str]) -> None:
        self.is_asleep -= set(tags)

    def shutdown(self) -> None:
        self.is_shut_down = True

    def fail_halfway(self, step: StepInput) -> None:
        """Fail before anything was noted, or after everything was and rubbish has reached the KV cache."""
        if self._random.random() < 0.5:
            self._take_note(step)
            for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
                known = self._known[request_id]
                for position in range(known.num_computed_tokens, known.num_computed_tokens + num_tokens):
                    self._slots[self._slot(known, position)] = RUBBISH
        self._unsure.update(step.request_ids, step.dropped_request_ids)

    def _take_note(self, step: StepInput) -> None:
        assert len(set(step.dropped_request_ids)) == len(step.dropped_request_ids)
        before, self._before = self._before, step
        # What a forgotten step dropped is dropped again, and so is each request that it was about.
        was_forgotten = self.runs_ahead and set(before.request_ids) <= set(step.dropped_request_ids)
        forgiven = {*self._unsure, *(before.dropped_request_ids if was_forgotten else [])}
        for request_id in step.dropped_request_ids:
            is_known = request_id in self._known or request_id in forgiven
            assert is_known or self.forgives_unknown_drops, f"{request_id} dropped, but never known"
            self._known.pop(request_id, None)
            self._unsure.discard(request_id)
        for new in step.new_requests:
            assert new.request_id not in self._known, f"{new.request_id} is new, but known"
            assert new.request_id in step.request_ids, f"{new.request_id} is new, but not scheduled"
            assert 0 < new.num_prompt_tokens <= len(new.token_ids)
            assert 0 <= new.num_computed_tokens < len(new.token_ids)
            assert new.num_computed_tokens % self.config.block_size == 0
            self._known[new.request_id] = KnownRequest(new)
        for request_id, block_ids in step.new_block_ids.items():
            assert request_id in step.request_ids, f"{request_id} got blocks, but is not scheduled"
            assert block_ids, f"{request_id} got an empty list of blocks"
            assert all(new.request_id != request_id for new in step.new_requests), f"{request_id} got blocks twice"
            self._known[request_id].block_ids += block_ids
        for known in self._known.values():
            assert all(0 <= block_id < self.config.num_blocks for block_id in known.block_ids)
            assert len(set(known.block_ids)) == len(known.block_ids), "a block stands twice in a table"

    def _check_limits(self, step: StepInput) -> None:
        config = self.config
        assert step.request_ids, "a step of nothing"
        assert len(set(step.request_ids)) == len(step.request_ids)
        assert len(step.request_ids) == len(step.num_scheduled_tokens)
        assert sum(step.num_scheduled_tokens) <= config.max_num_batched_tokens
        assert len(self._known) <= config.max_num_seqs
        for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
            known = self._known[request_id]
            end = known.num_computed_tokens + num_tokens
            assert 0 < num_tokens <= (config.long_prefill_token_threshold or num_tokens)
            assert end <= len(known.token_ids), f"{request_id}: {end} of {len(known.token_ids)} tokens"
            assert end <= len(known.block_ids) * config.block_size, f"{request_id} has no block for token {end}"
            assert len(known.token_ids) < config.max_model_len, f"{request_id} should have ended"

    def _write(self, step: StepInput) -> None:
        written: set[int] = set()
        # A step that was submitted behind the one that failed may read what that one wrote; its results are discarded.
        self._spoilt_before = self._spoilt if self.runs_ahead else set()
        self._spoilt = set()
        for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
            known = self._known[request_id]
            values = fingerprints(known.token_ids)
            is_spoilt = request_id in self.errors or self._reads_rubbish(known, known.num_computed_tokens)
            for position in range(known.num_computed_tokens, known.num_computed_tokens + num_tokens):
                slot = self._slot(known, position)
                assert slot not in written, f"two requests of one step write slot {slot}"
                written.add(slot)
                self._slots[slot] = values[position]
                self._spoilt_before.discard(slot)
                if is_spoilt:
                    self._slots[slot] = RUBBISH
                    self._spoilt.add(slot)

    def _sample(self, step: StepInput) -> StepOutput:
        output = StepOutput(token_ids=[])
        for request_id, num_tokens in zip(step.request_ids, step.num_scheduled_tokens, strict=True):
            known = self._known[request_id]
            start, end = known.num_computed_tokens, known.num_computed_tokens + num_tokens
            known.num_computed_tokens = end
            if request_id in self.errors:
                output.errors[request_id] = self.errors[request_id]
                output.token_ids.append([])
                if self.runs_ahead and end == len(known.token_ids):
                    known.token_ids.append(RUBBISH)  # for the step behind
                continue
            is_spoilt = self._reads_rubbish(known, end)
            expected = fingerprints(known.token_ids[:end])
            found = [self._slots[self._slot(known, position)] for position in range(end)]
            correct = [a == b for a, b in zip(found, expected, strict=True)]
            assert all(correct) or is_spoilt, f"{request_id}: its KV is right at {correct}"
            if known.params.prompt_logprobs is not None:
                last = min(end, known.num_prompt_tokens - 1)
                entries = [logprobs_at(known.token_ids[: position + 1]) for position in range(start, last)]
                output.prompt_logprobs[request_id] = entries
            sampled: list[int] = []
            if end == len(known.token_ids):
                for _ in range(self.tokens_per_step):
                    if known.params.logprobs is not None:
                        output.logprobs.setdefault(request_id, []).append(logprobs_at(known.token_ids))
                    token_id = RUBBISH if is_spoilt else next_token(known.token_ids, known.seed)
                    sampled.append(token_id)
                    known.token_ids.append(token_id)
            output.token_ids.append(sampled)
        return output

    def _reads_rubbish(self, known: KnownRequest, end: int) -> bool:
        spoilt = self._spoilt | self._spoilt_before
        return any(self._slot(known, position) in spoilt for position in range(end))

    def _slot(self, known: KnownRequest, position: int) -> int:
        block_size = self.config.block_size
        return known.block_ids[position // block_size] * block_size + position % block_size


class Collector:
    """Puts the outputs of a request together, as the front side does, and refuses what may never come."""

    def __init__(self) -> None:
        self.token_ids: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[TokenLogprobs]] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.finished: dict[str, CoreOutput] = {}

    def take(self, outputs: list[CoreOutput]) -> None:
        assert len({output.request_id for output in outputs}) == len(outputs), "two outputs of one request in a step"
        for output in outputs:
            assert output.request_id not in self.finished, f"{output.request_id} goes on after its end"
            assert output.new_token_ids or output.prompt_logprobs or output.finish_reason, "an empty output"
            self.token_ids.setdefault(output.request_id, []).extend(output.new_token_ids)
            self.logprobs.setdefault(output.request_id, []).extend(output.logprobs or [])
            self.prompt_logprobs.setdefault(output.request_id, []).extend(output.prompt_logprobs or [])
            if output.finish_reason is not None:
                self.finished[output.request_id] = output
