"""What a benchmark asks of an engine: prompts of random tokens, and how many to generate for each."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of equal size, all sent at once.

    Attributes:
        prefix_len: tokens that all prompts begin with, before the `input_len` of their own.
        seed: of the random tokens.
    """

    num_requests: int
    input_len: int = 128
    output_len: int = 32
    prefix_len: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_requests", 1), ("input_len", 1), ("output_len", 1), ("prefix_len", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range, expected at least {least}")

    @property
    def num_prompt_tokens(self) -> int:
        """Of all requests together."""
        return self.num_requests * (self.prefix_len + self.input_len)

    @property
    def num_output_tokens(self) -> int:
        """Of all requests together."""
        return self.num_requests * self.output_len

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """The prompts' token ids; the same seed gives the same ones."""
        draw = random.Random(self.seed)
        prefix = draw.choices(range(vocab_size), k=self.prefix_len)
        return [prefix + draw.choices(range(vocab_size), k=self.input_len) for _ in range(self.num_requests)]

    def __str__(self) -> str:
        prefix = f"{self.prefix_len} shared + " if self.prefix_len else ""
        return f"{self.num_requests} x ({prefix}{self.input_len} prompt + {self.output_len} generated) tokens"
