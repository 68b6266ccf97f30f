"""What a simulator is given to serve: requests that arrive over time, with prompts that may begin alike."""

import argparse
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

# Large enough that no two random blocks are the same.
VOCAB_SIZE = 50_000
Lengths = int | tuple[int, int]


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request that will come. In tokens, but for the time.

    Attributes:
        arrival: in seconds.
        input_len: of the prompt, after its prefix.
        output_len: exactly as many are generated.
        prefix: a name; prompts with the same one begin alike.
        prefix_len: that begin alike, before the `input_len` of its own.

    Raises:
        ValueError: a field is out of range.
    """

    arrival: float = 0.0
    input_len: int
    output_len: int
    prefix: str | None = None
    prefix_len: int = 0

    def __post_init__(self) -> None:
        _check_range("arrival", self.arrival, 0)
        _check_range("input_len", self.input_len, 1)
        _check_range("output_len", self.output_len, 1)
        _check_range("prefix_len", self.prefix_len, 0)
        if (self.prefix is None) != (self.prefix_len == 0):
            raise ValueError(f"prefix is {self.prefix!r} and prefix_len {self.prefix_len}: one needs the other")

    @property
    def num_prompt_tokens(self) -> int:
        return self.prefix_len + self.input_len

    def num_blocks(self, block_size: int) -> int:
        """KV-cache blocks it needs at its longest. Its last token is never computed, so it needs no room."""
        _check_range("block_size", block_size, 1)
        return -(-(self.num_prompt_tokens + self.output_len - 1) // block_size)


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they arrive.

    Args:
        requests: at least one; they are sorted by their arrival.
        seed: of the prompts' tokens.
    """

    requests: tuple[PlannedRequest, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError("requests is empty, but must have at least one request")
        object.__setattr__(self, "requests", tuple(sorted(self.requests, key=lambda request: request.arrival)))

    @classmethod
    def random(
        cls,
        *,
        num_requests: int = 16,
        input_len: Lengths = (20, 200),
        output_len: Lengths = (10, 100),
        rate: float | None = None,
        shared_prefix_len: int = 0,
        seed: int = 0,
    ) -> "Workload":
        """Requests drawn at random; the same seed gives the same ones.

        Args:
            input_len, output_len: tokens of each prompt and output: a number, or the least and the most.
            rate: requests a second, which come as a Poisson process, the first at 0; None, or infinity: all at once.
            shared_prefix_len: tokens that all prompts begin with, before their `input_len`.

        Raises:
            ValueError: an argument is out of range.
        """
        _check_range("num_requests", num_requests, 1)
        _check_range("shared_prefix_len", shared_prefix_len, 0)
        if rate is not None and not rate > 0:
            raise ValueError(f"rate: {rate} is out of range, expected more than 0")
        inputs, outputs = _least_and_most("input_len", input_len), _least_and_most("output_len", output_len)
        draw = random.Random(seed)
        requests, now = [], 0.0
        for _ in range(num_requests):
            requests.append(
                PlannedRequest(
                    arrival=now,
                    input_len=draw.randint(*inputs),
                    output_len=draw.randint(*outputs),
                    prefix="shared" if shared_prefix_len else None,
                    prefix_len=shared_prefix_len,
                )
            )
            now += draw.expovariate(rate) if rate is not None else 0.0
        return cls(tuple(requests), seed)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], seed: int = 0) -> "Workload":
        """Requests from a file that has one JSON object a line, with the fields of `PlannedRequest`.

        Arrivals may count from anywhere; here they count from the first one.

        Raises:
            ValueError: the file cannot be read, is empty, or a line is wrong: with its number and the field.
        """
        try:
            with open(path, encoding="utf-8") as file:
                lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {os.fspath(path)!r}: {error}") from None
        if not lines:
            raise ValueError(f"{os.fspath(path)!r} is empty, expected a JSON object a line")
        requests = []
        for number, line in lines:
            try:
                requests.append(msgspec.json.decode(line, type=PlannedRequest))
            except msgspec.MsgspecError as error:
                raise ValueError(f"{os.fspath(path)!r}, line {number}: {error}") from None
        first = min(request.arrival for request in requests)
        replace = msgspec.structs.replace
        return cls(tuple(replace(request, arrival=request.arrival - first) for request in requests), seed)

    @property
    def num_prompt_tokens(self) -> int:
        """Of all requests together."""
        return sum(request.num_prompt_tokens for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Of all requests together."""
        return sum(request.output_len for request in self.requests)

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output, of the longest request."""
        return max(request.num_prompt_tokens + request.output_len for request in self.requests)

    def num_blocks(self, block_size: int) -> int:
        """KV-cache blocks that hold all requests at once, each at its longest."""
        return sum(request.num_blocks(block_size) for request in self.requests)

    def least_num_blocks(self, block_size: int) -> int:
        """KV-cache blocks that the largest request needs alone."""
        return max(request.num_blocks(block_size) for request in self.requests)

    def check_fits(self, num_blocks: int, block_size: int) -> None:
        """Raise a ValueError unless each request alone fits in so many blocks."""
        least = self.least_num_blocks(block_size)
        if num_blocks < least:
            raise ValueError(f"num_blocks: {num_blocks} is out of range, expected at least {least} for one request")

    def prompts(self) -> list[list[int]]:
        """The prompts' token ids, parallel to `requests`."""
        return [
            _random_tokens(f"{self.seed} prefix {request.prefix}", request.prefix_len)
            + _random_tokens(f"{self.seed} prompt {index}", request.input_len)
            for index, request in enumerate(self.requests)
        ]

    def __str__(self) -> str:
        return (
            f"{len(self.requests)} requests, {self.num_prompt_tokens:,} prompt tokens, "
            f"{self.num_output_tokens:,} output tokens"
        )


def add_flags(parser: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """Add the flags of `Workload.random` and `Workload.from_file`.

    Args:
        defaults: arguments of `Workload.random` that are not as they are there.
    """
    options = {**(Workload.random.__kwdefaults__ or {}), **defaults}
    group = parser.add_argument_group("workload")

    def add(flag: str, name: str, kind: Any, metavar: str, text: str) -> None:
        value = options[name]
        shown = "-".join(map(str, value)) if isinstance(value, tuple) else "inf" if value is None else value
        text += f" (default: {shown})"
        group.add_argument(flag, dest=name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)

    add("--requests", "num_requests", int, "N", "how many come")
    add("--input-len", "input_len", lengths, "A[-B]", "prompt tokens that each has of its own")
    add("--output-len", "output_len", lengths, "A[-B]", "tokens to generate for each")
    add("--shared-prefix-len", "shared_prefix_len", int, "N", "prompt tokens before these, the same for all")
    add("--rate", "rate", float, "X", "requests a second, as a Poisson process; inf: all at once")
    add("--seed", "seed", int, "N", "of everything random")
    group.add_argument(
        "--file",
        metavar="FILE",
        help="the requests instead: one JSON object a line, with arrival (seconds), input_len, output_len, and, "
        "where prompts begin alike, prefix (a name) and prefix_len",
    )


def from_args(args: argparse.Namespace, defaults: Mapping[str, Any]) -> Workload:
    """The workload that the flags ask for.

    Raises:
        ValueError: a flag's value is wrong, or it means nothing beside --file.
    """
    names = Workload.random.__kwdefaults__ or {}
    given = {name: value for name, value in vars(args).items() if name in names}
    if args.file is None:
        if given.get("num_requests", 1) < 1:
            raise ValueError(f"--requests: {given['num_requests']} is out of range, expected at least 1")
        return Workload.random(**{**defaults, **given})
    seed = given.pop("seed", 0)
    if given:
        flags = [f"--{'requests' if name == 'num_requests' else name.replace('_', '-')}" for name in given]
        raise ValueError(f"--file: given together with {', '.join(flags)}, expected one or the other")
    try:
        return Workload.from_file(args.file, seed)
    except ValueError as error:
        raise ValueError(f"--file: {error}") from None


def lengths(text: str) -> Lengths:
    """A flag's "20" or "20-200"."""
    least, dash, most = text.partition("-")
    try:
        return (int(least), int(most)) if dash else int(least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a length such as 20 nor a range, 20-200") from None


def _random_tokens(seed: str, count: int) -> list[int]:
    """The longer of two with the same seed begins with the shorter."""
    return random.Random(seed).choices(range(VOCAB_SIZE), k=count)


def _least_and_most(name: str, value: Lengths) -> tuple[int, int]:
    least, most = value if isinstance(value, tuple) else (value, value)
    if not 1 <= least <= most:
        raise ValueError(f"{name}: {value} is out of range, expected at least 1, and the least before the most")
    return least, most


def _check_range(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name}: {value} is out of range, expected at least {least}")
