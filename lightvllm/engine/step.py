"""The one message each way between the engine and its workers.

`StepInput` says what to compute in one step; `StepOutput` brings back what was sampled. Both are msgspec structs, so
the same objects serve a worker in this process and one behind a socket. They are small: a request's tokens travel once,
when the worker does not know it yet; after that only its new cache blocks do.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from lightvllm.sampling_params import SamplingParams


class NewRequest(msgspec.Struct, frozen=True):
    """A request the worker does not know: just arrived, back from preemption, or back from a crash.

    Attributes:
        token_ids: prompt and output tokens so far; the first `num_computed_tokens` are in the KV cache already.
        num_prompt_tokens: how many of `token_ids` are the prompt; the rest were generated before.
        block_ids: the KV-cache blocks that hold its tokens, in order, those of this step included.
        seed: of this request's random draws, always set (see `lightvllm.worker.sampler`).
        stop_token_ids: every token that ends the request (EOS included unless ignored); banned before `min_tokens`.
        eos_token_ids: those of them that are the model's own: a structured output ends with one of these.
    """

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    block_ids: list[int]
    sampling_params: SamplingParams
    seed: int
    stop_token_ids: list[int] = []
    eos_token_ids: list[int] = []


class StepInput(msgspec.Struct):
    """One step's work.

    Attributes:
        request_ids: the scheduled requests, the new ones included.
        num_scheduled_tokens: parallel to `request_ids`: how many of its tokens to compute, from its first uncomputed
            one. A request whose last known token is among them samples the next; any other is amid its prefill.
        new_requests: what the worker needs to know of requests it has not seen.
        new_block_ids: blocks appended to the block tables of requests it has seen.
        dropped_request_ids: finished, aborted and preempted requests: forget them before anything else. After a step
            that failed or was forgotten there may be some among them that the worker does not know, or no longer.
    """

    request_ids: list[str] = []
    num_scheduled_tokens: list[int] = []
    new_requests: list[NewRequest] = []
    new_block_ids: dict[str, list[int]] = {}
    dropped_request_ids: list[str] = []


class TokenLogprobs(msgspec.Struct, frozen=True):
    """The log-probabilities reported at one position: the chosen token first, then the most likely ones in order.

    The chosen token comes again in the list when it is one of the most likely.
    """

    token_ids: list[int]
    logprobs: list[float]
    chosen_rank: int  # 1 is the most likely


class StepOutput(msgspec.Struct):
    """What one step gave.

    Attributes:
        token_ids: parallel to `StepInput.request_ids`: the sampled tokens, empty in the middle of a prefill.
        logprobs: of the requests that asked for them: one entry per sampled token.
        prompt_logprobs: of the requests that asked for them: one entry for each prompt position this step computed
            the next-token distribution of (so the first prompt token never has one).
        errors: requests that failed on their own, with the reason; they are not to be scheduled again.
    """

    token_ids: list[list[int]]
    logprobs: dict[str, list[TokenLogprobs]] = {}
    prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
    errors: dict[str, str] = {}


# Waits for a step's results.
PendingOutput: TypeAlias = Callable[[], StepOutput]
