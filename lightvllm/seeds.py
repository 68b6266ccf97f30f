"""Where the seeds of random draws come from: pure functions, so that a restart finds the same ones again.

Imports neither torch nor numpy. The draws themselves are made in `lightvllm.worker.draw`.
"""

_MASK = 2**64 - 1

# Constants of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): the step of
# its counter, 2**64 divided by the golden ratio; and the multipliers of its mixing function.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix64(x: int) -> int:
    """SplitMix64's mixing function: a bijection of 64-bit integers in which each bit depends on all."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * MIX_MULTIPLIERS[0]) & _MASK
    x = ((x ^ (x >> 27)) * MIX_MULTIPLIERS[1]) & _MASK
    return x ^ (x >> 31)


def child_seed(seed: int, index: int) -> int:
    """The seed of completion `index` of a request. The first keeps the request's: n=1 draws what n=4 begins with."""
    return seed if index == 0 else _derived(seed, index)


def request_seed(engine_seed: int, counter: int) -> int:
    """The seed of the `counter`-th request that came without one to an engine that was started with `engine_seed`."""
    # The constant keeps these apart from the children of a request whose own seed is the engine's.
    return _derived(engine_seed ^ 0x7265717565737473, counter)


def _derived(seed: int, index: int) -> int:
    """A 63-bit seed, so that it is a valid `SamplingParams.seed` too."""
    return mix64(mix64(seed) + index * GOLDEN_GAMMA) >> 1
