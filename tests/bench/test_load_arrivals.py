"""Requests arrive at the rate and as unevenly as asked for."""

import itertools
import math
import statistics

import pytest

from lightvllm.bench.load.arrivals import arrival_times

NUM = 20_000


def gaps(rate: float, burstiness: float, seed: int = 0) -> list[float]:
    times = list(itertools.islice(arrival_times(rate, burstiness, seed), NUM + 1))
    assert times[0] == 0
    return [after - before for before, after in itertools.pairwise(times)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_rate_and_burstiness(burstiness: float) -> None:
    found = gaps(8.0, burstiness)
    spread = 1 / math.sqrt(burstiness)  # of a gamma distribution: standard deviation over mean
    # Four standard errors of the mean, a few of the deviation's; the seed is fixed.
    assert statistics.mean(found) == pytest.approx(1 / 8, rel=4 * spread / math.sqrt(NUM))
    assert statistics.stdev(found) * 8 == pytest.approx(spread, rel=0.06)


def test_a_poisson_process() -> None:
    """Burstiness 1: the part of gaps longer than the mean is 1/e."""
    found = gaps(2.0, 1.0)
    assert sum(gap > 0.5 for gap in found) / NUM == pytest.approx(math.exp(-1), abs=0.015)


def test_at_a_beat_and_at_once() -> None:
    assert list(itertools.islice(arrival_times(4.0, math.inf), 3)) == [0, 0.25, 0.5]
    assert list(itertools.islice(arrival_times(math.inf), 3)) == [0, 0, 0]


def test_the_seed_decides() -> None:
    assert gaps(1.0, 1.0, seed=3) == gaps(1.0, 1.0, seed=3) != gaps(1.0, 1.0, seed=4)


@pytest.mark.parametrize(
    ("rate", "burstiness", "name"), [(0, 1, "request_rate"), (1, 0, "burstiness"), (math.nan, 1, "r")]
)
def test_what_is_no_rate(rate: float, burstiness: float, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        arrival_times(rate, burstiness)
