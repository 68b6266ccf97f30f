"""When requests arrive."""

import math
import random
from collections.abc import Iterator


def arrival_times(rate: float, burstiness: float = 1.0, seed: int = 0) -> Iterator[float]:
    """The time of each request in seconds, without end; the first comes at 0.

    The times between them follow a gamma distribution with this mean rate. Its shape is the burstiness: 1 is a Poisson
    process, less comes in bursts, more comes evenly, infinity at a fixed beat.

    Args:
        rate: requests a second; infinity lets all come at once.

    Raises:
        ValueError: a rate or a burstiness that is not positive.
    """
    for name, value in (("request_rate", rate), ("burstiness", burstiness)):
        if not value > 0:
            raise ValueError(f"{name}: {value} is out of range, expected more than 0")
    return _times(rate, burstiness, random.Random(seed))


def _times(rate: float, burstiness: float, draw: random.Random) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        if math.isinf(rate):
            continue
        now += 1 / rate if math.isinf(burstiness) else draw.gammavariate(burstiness, 1 / (rate * burstiness))
