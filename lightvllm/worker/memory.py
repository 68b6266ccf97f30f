"""How the C library deals with freed memory while an engine runs on a CPU.

glibc gives large buffers back to the system as soon as they are freed, so every operation of every step pays for
mapping and zeroing its output anew: a fifth of a prefill's time (docs/log.md). Where the library is not glibc nothing
changes.
"""

import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_DEFAULT_THRESHOLD = 128 * 1024


def keep_freed_memory() -> None:
    """Keep freed buffers for the next step."""
    _set_thresholds(trim=2**31 - 1, mmap=2**30)


def return_freed_memory() -> None:
    """Give what is free back to the system, and go on as the C library does by default."""
    _set_thresholds(trim=_DEFAULT_THRESHOLD, mmap=_DEFAULT_THRESHOLD)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _set_thresholds(trim: int, mmap: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, mmap)
        mallopt(_M_TRIM_THRESHOLD, trim)
