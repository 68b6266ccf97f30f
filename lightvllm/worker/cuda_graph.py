"""Steps of decodes as CUDA graphs: some hundred kernels that the host launches with one call.

A graph is captured for a number of requests, to which a step is padded, when the first step of that size comes: that
step runs as it is, and the next ones replay it. Outside of CUDA nothing is captured, and every step runs as it is.
"""

import enum
import logging
import time
import warnings
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class Sampling(enum.Enum):
    """How the tokens of a step are chosen."""

    GREEDY = "greedy"  # all the most likely ones
    RANDOM = "random"  # some drawn, on the device
    ON_HOST = "on the host"  # from its logits


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    output: Tensor


class DecodeGraphs:
    """Runs padded steps of decodes.

    Args:
        decode: the step: size, sampling and block table [size, max_blocks] int32 -> a tensor with a row a request. What
            it reads otherwise is always in the same places.
        max_num_seqs: most requests in a step.
        max_blocks: of one request.
    """

    def __init__(
        self,
        decode: Callable[[int, Sampling, Tensor], Tensor],
        max_num_seqs: int,
        max_blocks: int,
        device: torch.device,
    ) -> None:
        self.decode = decode
        self.device = device
        self.sizes = graph_sizes(max_num_seqs)
        self.block_table = torch.zeros(self.sizes[-1], max_blocks, dtype=torch.int32, device=device)
        self.captured: dict[tuple[int, Sampling], _Captured] = {}
        self.refused: set[tuple[int, Sampling]] = set()
        self.logits: Tensor | None = None  # for the host, of whatever graph ran last
        if device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()
            # One for all: memory that one capture frees is only there for others on its stream.
            self.stream = torch.cuda.Stream(device)
            # Holds what torch allocates for the first graph: without memory for that, a capture would end the process.
            self.first = torch.cuda.CUDAGraph()
            self.first.register_generator_state(torch.cuda.default_generators[torch.cuda.current_device()])

    def size_for(self, num_requests: int) -> int | None:
        """The number that so many requests are padded to; None if they are too many for a graph."""
        index = bisect_left(self.sizes, num_requests)
        return self.sizes[index] if index < len(self.sizes) else None

    def run(self, size: int, sampling: Sampling, block_table: Tensor) -> Tensor:
        """One step: block_table [size, at most max_blocks] int32 -> the output, which the next step overwrites."""
        table = self.block_table[:size]
        table[:, : block_table.shape[1]] = block_table
        captured = self.captured.get((size, sampling))
        if captured is not None:
            captured.graph.replay()
            return captured.output
        output = self.decode(size, sampling, table)
        if self.device.type == "cuda" and (size, sampling) not in self.refused:
            self._try_to_capture(size, sampling, table, output)
        return output

    def _try_to_capture(self, size: int, sampling: Sampling, table: Tensor, output: Tensor) -> None:
        """Capture the step that has just run; where that fails, it goes on being run as it is."""
        start, free = time.perf_counter(), torch.cuda.mem_get_info(self.device)[0]
        try:
            if sampling is Sampling.ON_HOST and self.logits is None:
                self.logits = output.new_empty(self.sizes[-1], output.shape[1])
            self.captured[size, sampling] = self._capture(size, sampling, table)
        except torch.OutOfMemoryError as error:
            self.refused.add((size, sampling))
            if not self.captured:
                self.pool = torch.cuda.graph_pool_handle()
            logger.warning(
                "no memory to capture decodes of up to %d requests, they run without a graph: %s", size, error
            )
            return
        logger.info(
            "captured decodes of up to %d requests (%s) in %.0f ms, %.0f MiB",
            *(size, sampling.value, 1000 * (time.perf_counter() - start)),
            (free - torch.cuda.mem_get_info(self.device)[0]) / 2**20,
        )

    def _capture(self, size: int, sampling: Sampling, table: Tensor) -> _Captured:
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                output = self.decode(size, sampling, table)
                if sampling is Sampling.ON_HOST:
                    assert self.logits is not None
                    output = self.logits[:size].copy_(output)
            except BaseException:
                with suppress(RuntimeError), warnings.catch_warnings(action="ignore"):
                    graph.capture_end()  # of a capture that is spoilt or empty; the cause is what counts
                raise
            graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return _Captured(graph, output)


def graph_sizes(max_num_seqs: int) -> list[int]:
    """The sizes that steps are padded to, ascending: few, as each takes time and memory, and no padding over a third.

    Beyond 512 requests a step is long enough for the host.
    """
    sizes = [1, 2, 4, 8, 12, 16, 24, 32, 48, *range(64, 257, 32), 320, 384, 448, 512]
    index = bisect_left(sizes, max_num_seqs)
    return sizes[: index + 1]
