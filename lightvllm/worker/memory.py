"""How the host's memory is dealt with while an engine runs.

With one on a CPU, glibc gives large buffers back as soon as they are freed, so every operation of every step pays for
mapping and zeroing its output anew: a fifth of a prefill's time (docs/log.md). Where the library is not glibc nothing
changes.
"""

import ctypes
import mmap
import sys
import threading
import weakref

from torch import Tensor

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


_MADV_HUGEPAGE = 14  # of <linux/mman.h>
_MADV_POPULATE_WRITE = 23  # since Linux 5.14
_AT_ONCE = 4 << 20


def use_large_pages(tensor: Tensor) -> None:
    """Have the system put large pages below a tensor that nobody has written to yet; not on Linux it does nothing."""
    if sys.platform == "linux":
        first = _whole_page(tensor.data_ptr())
        length = tensor.data_ptr() + tensor.nbytes - first
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(max(0, length)), _MADV_HUGEPAGE)


def make_resident(tensors: list[Tensor]) -> None:
    """Have the system hand out the pages of these tensors now, their beginnings first, beside other work.

    A page costs nothing until it is first written, but then a step waits for it: long where the system itself must ask
    a virtual machine's host. At the priority of all else: at a lower one a busy engine never gets its cache. Elsewhere
    than on Linux, pages come when they are written.
    """
    references = [weakref.ref(tensor) for tensor in tensors]
    threading.Thread(target=_populate, args=(references,), name="kv-cache-pages", daemon=True).start()


def _populate(tensors: "list[weakref.ref[Tensor]]") -> None:
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    start = 0
    while True:
        is_done = True
        for reference in tensors:
            tensor = reference()
            if tensor is None:
                return
            first = _whole_page(tensor.data_ptr() + start)
            length = min(_AT_ONCE, tensor.data_ptr() + tensor.nbytes - first)
            if length <= 0:
                continue
            is_done = False
            if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), _MADV_POPULATE_WRITE):
                return
            del tensor  # or it would live as long as this goes on
        if is_done:
            return
        start += _AT_ONCE


def _whole_page(address: int) -> int:
    """Where the next page begins."""
    return (address + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
