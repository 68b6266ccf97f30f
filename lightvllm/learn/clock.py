"""The simulated clock: what a step would take. Nothing here sleeps or measures."""

import argparse
import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Seconds of a step: a fixed part, one for each token it computes, one for each token these look back at.

    The defaults are those of a model of 8 billion parameters in 16 bits, on an accelerator that reads 2 TB a second and
    reaches 200 Tflop/s. They are round numbers for the shape of things, not a measurement of anything.

    Attributes:
        fixed: reading all weights once, however many tokens share them: 16 GB at 2 TB/s.
        per_token: the products of one token with all weights, two operations for each: 16 Gflop at 200 Tflop/s.
        per_context_token: reading one token's keys and values: 32 layers, 8 heads, 128 numbers, twice, of 2 bytes are
            128 KiB, at 2 TB/s.

    Raises:
        ValueError: a part is negative or no number, or the fixed one is zero.
    """

    fixed: float = 8e-3
    per_token: float = 8e-5
    per_context_token: float = 6.5e-8

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{field.name}: {value} is out of range, expected at least 0")
        if not self.fixed:
            raise ValueError("fixed: 0 is out of range, expected more than 0: no step takes no time")

    def seconds(self, num_tokens: int, num_context_tokens: int) -> float:
        """Of one step.

        Args:
            num_tokens: that it computes, of all requests together.
            num_context_tokens: that are in the KV cache after it, of the requests that take part in it.
        """
        return self.fixed + self.per_token * num_tokens + self.per_context_token * num_context_tokens


# Flag -> (field, seconds in one of the flag's unit, help).
_FLAGS = {
    "--step-ms": ("fixed", 1e-3, "milliseconds of every step"),
    "--token-us": ("per_token", 1e-6, "microseconds more for each token computed"),
    "--context-token-us": ("per_context_token", 1e-6, "microseconds more for each token these look back at"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `StepCost`."""
    group = parser.add_argument_group("simulated time")
    for flag, (field, unit, text) in _FLAGS.items():
        default = getattr(StepCost(), field) / unit
        group.add_argument(flag, dest=field, type=float, metavar="X", help=f"{text} (default: {default:g})")


def from_args(args: argparse.Namespace) -> StepCost:
    """The cost that the flags ask for.

    Raises:
        ValueError: by the flag's name.
    """
    given = {field: (flag, unit) for flag, (field, unit, _) in _FLAGS.items() if getattr(args, field) is not None}
    cost = StepCost()
    for field, (flag, unit) in given.items():
        try:
            cost = dataclasses.replace(cost, **{field: getattr(args, field) * unit})
        except ValueError as error:
            raise ValueError(f"{flag} {getattr(args, field):g}: {error}") from None
    return cost
