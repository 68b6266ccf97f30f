"""What every contender is asked to do: requests of random tokens, all sent at once, the same ones to all."""

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests whose prompt and output lengths are drawn from ranges, both ends included.

    Attributes:
        name: as results and flags call it.
        context_len: tokens that all prompts begin with and that are in the cache before the clock starts.
    """

    name: str
    num_requests: int
    input_lens: tuple[int, int] = (128, 128)
    output_lens: tuple[int, int] = (32, 32)
    context_len: int = 0

    @property
    def is_uniform(self) -> bool:
        """Whether all requests are of one size."""
        return all(least == most for least, most in (self.input_lens, self.output_lens))

    @property
    def max_len(self) -> int:
        """Of the longest request possible, prompt and output."""
        return self.context_len + self.input_lens[1] + self.output_lens[1]

    def context(self, vocab_size: int) -> list[int]:
        """The tokens that the prompts share; the same in every run, and the beginning of any longer context."""
        return random.Random("context").choices(range(vocab_size), k=self.context_len)

    def draw(self, vocab_size: int, run: int) -> tuple[list[list[int]], list[int]]:
        """The prompts' token ids and the output lengths of a run. Lengths are those of any run, tokens are its own."""
        lengths, tokens = random.Random(0), random.Random(f"{self.name} {run}")
        sizes = [
            (lengths.randint(*self.input_lens), lengths.randint(*self.output_lens)) for _ in range(self.num_requests)
        ]
        context = self.context(vocab_size)
        return [context + tokens.choices(range(vocab_size), k=k) for k, _ in sizes], [length for _, length in sizes]


# No prefix cache helps with any of these but the one that has a context: no two prompts are alike.
LOADS = (
    Load(name="decode-1", num_requests=1),
    Load(name="decode-8", num_requests=8),
    Load(name="decode-32", num_requests=32),
    Load(name="mixed", num_requests=32, input_lens=(25, 256), output_lens=(25, 128)),
    Load(name="context", num_requests=8, input_lens=(16, 16), output_lens=(16, 16), context_len=8192),
)
QUICK_LOADS = (
    Load(name="decode-1", num_requests=1, input_lens=(64, 64), output_lens=(8, 8)),
    Load(name="decode-8", num_requests=8, input_lens=(64, 64), output_lens=(8, 8)),
    Load(name="decode-32", num_requests=32, input_lens=(16, 16), output_lens=(8, 8)),
    Load(name="mixed", num_requests=8, input_lens=(8, 32), output_lens=(4, 16)),
    Load(name="context", num_requests=8, input_lens=(16, 16), output_lens=(4, 4), context_len=512),
)
WARM_UP = Load(name="warm-up", num_requests=8)


@dataclass(frozen=True)
class Timing:
    """One run of a load, in seconds.

    Attributes:
        prefill: from the start to the last request's first token.
        decode: from there to the last token; 0 for requests of one token.
        whole: from the start until all requests were done.
    """

    prefill: float
    decode: float
    whole: float

    @classmethod
    def of_requests(cls, first: Sequence[float], last: Sequence[float], whole: float) -> "Timing":
        """From when each request's first and last token came."""
        return cls(max(first), max(last) - max(first), whole)


def prefill_rate(load: Load, timing: Timing) -> float:
    """Prompt tokens a second, of a load of equal requests without a context."""
    return load.num_requests * load.input_lens[0] / timing.prefill


def decode_rate(load: Load, timing: Timing) -> float:
    """Tokens a second after each request's first, of a load of equal requests."""
    return load.num_requests * (load.output_lens[0] - 1) / timing.decode


def output_rate(load: Load, timing: Timing) -> float:
    """Generated tokens a second over the whole run."""
    return sum(load.draw(2, 0)[1]) / timing.whole
