"""When to try a request again, and how long to wait before."""

import random
from dataclasses import dataclass

from lightvllm.client.errors import APIConnectionError, APIError

# The server has too much to do (429, 503), or whoever stands before it does not reach it at this moment (502, 504).
RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter: clients that failed together do not come back together.

    Attributes:
        max_retries: further attempts after the first.
        first_delay, longest_delay: bounds of the waiting time in seconds, which doubles from attempt to attempt.
        longest_retry_after: a server that asks for more patience than this, in seconds, is not waited for.
    """

    max_retries: int = 2
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_retry_after: float = 60.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries: {self.max_retries} is out of range, expected at least 0")

    def delay(self, num_failures: int, error: APIError) -> float | None:
        """Seconds to wait before the next attempt; None if there should be none.

        Args:
            num_failures: attempts so far; the last one ended with `error`.
        """
        if num_failures > self.max_retries:
            return None
        if isinstance(error, APIConnectionError):
            if not error.can_retry:
                return None
        elif error.status not in RETRIED_STATUSES or error.code == "deadline_exceeded":
            return None  # the request's own deadline: its time is up
        # Of all choices that keep clients apart, half of the time fixed and half of it random wastes little.
        backoff = min(self.first_delay * 2 ** (num_failures - 1), self.longest_delay) * random.uniform(0.5, 1.0)
        if error.retry_after is None:
            return backoff
        if error.retry_after > self.longest_retry_after:
            return None
        # Never earlier than asked; a little later, each client by another bit.
        return error.retry_after + backoff / 4
