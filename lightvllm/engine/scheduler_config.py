"""The scheduler's limits, and what they mean for one request. The front checks by them what the core will accept."""

import dataclasses

from lightvllm.engine.policy import POLICIES
from lightvllm.errors import ParameterError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The scheduler's limits.

    Attributes:
        num_blocks: KV-cache blocks of `block_size` tokens.
        max_model_len: the most tokens, prompt and output, of one request.
        max_num_seqs: the most requests running at a time.
        max_num_batched_tokens: the most tokens computed in one step.
        policy: a name in `lightvllm.engine.policy.POLICIES`: whose turn it is.
        long_prefill_token_threshold: the most tokens of one request computed in one step; 0 is no limit.
    """

    num_blocks: int
    max_model_len: int
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096
    enable_prefix_caching: bool = True
    policy: str = "fcfs"
    long_prefill_token_threshold: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "num_blocks": 1,
            "max_model_len": 2,  # a prompt token and a generated one
            "block_size": 1,
            "max_num_seqs": 1,
            "max_num_batched_tokens": 1,
            "long_prefill_token_threshold": 0,
        }
        for name, bound in at_least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {bound}")
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}, but must be {' or '.join(map(repr, POLICIES))}")

    def max_num_tokens(self, name: str, num_prompt_tokens: int, max_tokens: int | None) -> int:
        """The length, prompt and output, at which a request ends: at `max_tokens`, else where context or cache do.

        Args:
            name: the request's, for the error.
            max_tokens: that it may generate; None for as many as fit.

        Raises:
            ParameterError: it could never run to its end, with the numbers.
        """
        if num_prompt_tokens + 1 > self.max_model_len:
            raise ParameterError(
                "prompt",
                f"the prompt of {name} has {num_prompt_tokens} tokens, but must have at most "
                f"{self.max_model_len - 1}: max_model_len is {self.max_model_len}, one token at least is generated",
            )
        # The last token generated is never computed, so it needs no room in the cache.
        capacity = self.num_blocks * self.block_size + 1
        if max_tokens is None:
            longest, wish = num_prompt_tokens + 1, "one token to generate"
            ends_at = min(self.max_model_len, capacity)
        else:
            longest = ends_at = min(self.max_model_len, num_prompt_tokens + max_tokens)
            wish = f"max_tokens={max_tokens}"
        if longest > capacity:
            raise ParameterError(
                "prompt" if max_tokens is None else "max_tokens",
                f"{name} needs {-(-(longest - 1) // self.block_size)} KV-cache blocks of {self.block_size} tokens "
                f"for {num_prompt_tokens} prompt tokens and {wish}, but the cache has {self.num_blocks}: shorten "
                "the prompt, lower max_tokens, or give the KV cache more memory",
            )
        return ends_at
