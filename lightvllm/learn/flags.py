"""Flags that several simulators have the like of."""

import argparse
from collections.abc import Sequence


def add_integer(group: argparse._ActionsContainer, flag: str, default: int, text: str) -> None:
    """Add a flag for a number."""
    group.add_argument(flag, type=int, metavar="N", default=default, help=f"{text} (default: {default})")


def add_integers(group: argparse._ActionsContainer, flag: str, default: Sequence[int], text: str) -> None:
    """Add a flag for numbers that are tried one after the other."""
    shown = ",".join(map(str, default))
    group.add_argument(flag, type=integers, metavar="N,...", default=default, help=f"{text} (default: {shown})")


def integers(text: str) -> tuple[int, ...]:
    """A flag's "8192,512"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 8192,512") from None
