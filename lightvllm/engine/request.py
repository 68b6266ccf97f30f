"""A request as the engine core sees it, and what the core gives back for it."""

import enum
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import msgspec

from lightvllm.engine.step import TokenLogprobs
from lightvllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightvllm.engine.messages import AddRequest
    from lightvllm.engine.prefix_cache import CachedBlock

FinishReason = Literal["stop", "length", "abort", "error"]

# Larger than any number of tokens.
NEVER = sys.maxsize


class RequestStatus(enum.Enum):
    WAITING = enum.auto()  # never scheduled so far
    RUNNING = enum.auto()  # owns cache blocks, and the worker knows it
    PREEMPTED = enum.auto()  # waits again: its blocks are gone, its tokens are not
    FINISHED = enum.auto()


class CoreOutput(msgspec.Struct, omit_defaults=True, gc=False):
    """What one step gave one request.

    Attributes:
        new_token_ids: generated in this step, the token that ended the request included.
        logprobs: when asked for, one entry per new token.
        prompt_logprobs: when asked for, the next entries of the prompt's: over the life of a request one for each
            prompt token but the first, in order, none twice.
        finish_reason: None while it goes on. "stop": an end-of-sequence or stop token; "length": max_tokens, or
            the context is full; "abort"; "error", with the reason in `error`.
        stop_reason: the token of `stop_token_ids` that ended it; None for an end-of-sequence token.
        num_cached_tokens: how many of its first tokens the prefix cache had when it first ran.
        first_scheduled_time: when it first ran, by `time.monotonic()`; None if it never did.
    """

    request_id: str
    new_token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    num_cached_tokens: int = 0
    first_scheduled_time: float | None = None
    error: str | None = None


class Request:
    """A list of tokens, of which the first `num_computed_tokens` are in the KV cache.

    Everything the scheduler does follows from these two. A prompt never seen, one computed by half, a decode, a request
    back from preemption and one added again after a crash differ in nothing but the numbers.

    Args:
        prompt_token_ids: at least one.
        seed: of its random draws.
        eos_token_ids: the model's end-of-sequence tokens; they count unless `sampling_params.ignore_eos`, and always
            when the output is structured: the worker lets one through only where it may, or must, come.
        output_token_ids: generated before, when the request is added again after a crash.
        priority: lower goes first, if the scheduler's policy is "priority".
        arrival_time: in seconds, of any one clock; earlier goes first. None is now, by `time.monotonic()`.
        cache_salt: only requests of the same salt share cached prefixes.
        is_suspect: an engine may have died of it: it runs alone, before all others, until it has a token.

    Raises:
        ValueError: the prompt or the salt is empty.

    Attributes:
        token_ids: prompt and output so far.
        block_ids: the cache blocks that hold the computed tokens and have room for those to come, in order.
        min_num_tokens, max_num_tokens: a stop token ends it from the first on, its length at the second. The second is
            set by the scheduler, which knows the context length and the size of the cache.
        num_unknown_tokens: tokens behind `token_ids` that steps under way sample, see `Scheduler.assume`.
        samples_blindly: a token of it depends on those before through the model alone, so a step that needs it can be
            submitted while it is not known yet.
        num_prompt_logprobs: how many entries of the prompt's log-probabilities were delivered.
        block_hashes: the prefix-cache hashes of its full blocks, each computed once.
        cached_prefix: the cached block that ends its last shareable prefix; None at its root.
        next_block_end: the number of computed tokens at which its next block can be shared, or NEVER.
        order: its place among all requests: the smallest is served first, the largest preempted first.
    """

    __slots__ = (
        "arrival_time",
        "block_hashes",
        "block_ids",
        "cache_salt",
        "cached_prefix",
        "eos_token_ids",
        "finish_reason",
        "first_scheduled_time",
        "is_suspect",
        "max_num_tokens",
        "min_num_tokens",
        "next_block_end",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_unknown_tokens",
        "order",
        "priority",
        "request_id",
        "samples_blindly",
        "sampling_params",
        "seed",
        "status",
        "stop_reason",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        *,
        seed: int,
        eos_token_ids: Iterable[int] = (),
        output_token_ids: Iterable[int] = (),
        priority: int = 0,
        arrival_time: float | None = None,
        cache_salt: str | None = None,
        is_suspect: bool = False,
    ) -> None:
        if not prompt_token_ids:
            raise ValueError(f"prompt of request {request_id!r} is empty: it must have at least one token")
        if cache_salt == "":
            raise ValueError(
                f"cache_salt of request {request_id!r} is '', but must be None or a string that is not empty"
            )
        self.request_id = request_id
        self.token_ids = [*prompt_token_ids, *output_token_ids]
        self.num_prompt_tokens = len(prompt_token_ids)
        self.sampling_params = sampling_params
        self.seed = seed
        # A structured output may be complete: then only its end is left, and it ends whatever the parameters say.
        must_end = sampling_params.structured_outputs is not None
        self.eos_token_ids = frozenset(eos_token_ids if must_end or not sampling_params.ignore_eos else ())
        self.stop_token_ids = self.eos_token_ids.union(sampling_params.stop_token_ids or ())
        self.priority = priority
        self.arrival_time = time.monotonic() if arrival_time is None else arrival_time
        self.cache_salt = cache_salt
        self.is_suspect = is_suspect

        self.status = RequestStatus.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | None = None
        self.num_computed_tokens = 0
        self.num_unknown_tokens = 0
        self.samples_blindly = sampling_params.samples_blindly
        self.num_cached_tokens = 0
        self.first_scheduled_time: float | None = None
        self.num_preemptions = 0
        # Output follows the prompt: who has some was given all of the prompt's log-probabilities.
        self.num_prompt_logprobs = self.num_prompt_tokens - 1 if self.num_output_tokens else 0
        self.min_num_tokens = self.num_prompt_tokens + (0 if must_end else sampling_params.min_tokens)
        self.max_num_tokens = NEVER

        self.order: tuple[float, float, int] = (priority, self.arrival_time, 0)
        self.block_ids: list[int] = []
        self.block_hashes: list[bytes] = []
        self.cached_prefix: CachedBlock | None = None
        self.next_block_end = NEVER

    @classmethod
    def from_message(cls, message: "AddRequest") -> "Request":
        """The request that a message from the front asks for."""
        return cls(**msgspec.structs.asdict(message))

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_skippable_tokens(self) -> int:
        """How many of its first tokens need not be computed when the prefix cache has them.

        The last one always is: its output gives the next token. So is every prompt token that gives log-probabilities
        still to be delivered.
        """
        if self.sampling_params.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1:
            return self.num_prompt_logprobs
        return len(self.token_ids) - 1

    def append(self, sampled: list[int]) -> list[int]:
        """Take the sampled tokens up to the first that ends the request, which sets `finish_reason`; returns these."""
        token_ids = self.token_ids
        for count, token_id in enumerate(sampled, start=1):
            token_ids.append(token_id)
            if token_id in self.stop_token_ids and len(token_ids) >= self.min_num_tokens:
                self.finish_reason = "stop"
                self.stop_reason = None if token_id in self.eos_token_ids else token_id
                return sampled[:count]
            if len(token_ids) >= self.max_num_tokens:
                self.finish_reason = "length"
                return sampled[:count]
        return sampled

    def take_prompt_logprobs(self, entries: list[TokenLogprobs], num_computed_before: int) -> list[TokenLogprobs]:
        """Of the entries of a step that began at token `num_computed_before`, those not delivered before.

        A request that comes back from preemption computes its prompt again.
        """
        new = entries[max(0, self.num_prompt_logprobs - num_computed_before) :]
        self.num_prompt_logprobs += len(new)
        assert self.num_prompt_logprobs < self.num_prompt_tokens, f"{self.request_id}: too many prompt logprobs"
        return new
