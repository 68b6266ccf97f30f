"""Stretches of tokens, and which of them are predicted. Imports no torch."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Tokens the model sees at once.

    Attributes:
        first_counted: how many of them are context only; at least 1, as nothing comes before the first.
    """

    token_ids: list[int]
    first_counted: int

    @property
    def num_counted(self) -> int:
        """Tokens that are predicted."""
        return len(self.token_ids) - self.first_counted


def text_windows(token_ids: Sequence[int], length: int, stride: int) -> Iterator[Window]:
    """Overlapping windows in which each token but the text's first is counted once.

    It is predicted from at least `length - stride` tokens before it, but in the first window, where there may be fewer.

    Args:
        length: tokens of a window; the last one may have fewer.
        stride: from the beginning of one window to that of the next, less than `length`.

    Raises:
        ValueError: a text of fewer than two tokens, or numbers that do not fit.
    """
    if not 1 <= stride < length:
        raise ValueError(f"stride: {stride} is out of range, expected 1 to {length - 1}, less than length")
    if len(token_ids) < 2:
        raise ValueError(f"text: has {len(token_ids)} tokens, expected at least 2: the first has nothing before it")
    begin, counted = 0, 1
    while counted < len(token_ids):
        end = min(begin + length, len(token_ids))
        yield Window(list(token_ids[begin:end]), counted - begin)
        begin, counted = begin + stride, end


def limited(windows: Sequence[Window], limit: int) -> list[Window]:
    """The first windows, up to `limit` counted tokens; one at least, which is cut if it has more."""
    if limit < 1:
        raise ValueError(f"limit: {limit} is out of range, expected at least 1")
    first = windows[0]
    totals = itertools.accumulate(window.num_counted for window in windows)
    kept = [window for window, total in zip(windows, totals, strict=True) if total <= limit]
    return kept or [Window(first.token_ids[: first.first_counted + limit], first.first_counted)]
