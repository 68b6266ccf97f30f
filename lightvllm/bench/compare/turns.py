"""The comparison itself: within each number type contenders take turns at each load, and only one runs at a time."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lightvllm.bench.compare import llama_cpp
from lightvllm.bench.compare.contenders import GGUF_TYPES, Contender, Peers, Start, contenders_of, gguf_path
from lightvllm.bench.compare.gguf import write_gguf
from lightvllm.bench.compare.limits import Limits, measure_limits
from lightvllm.bench.compare.loads import WARM_UP, Load, Timing
from lightvllm.bench.compare.process import ContenderError
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint

logger = logging.getLogger(__name__)

DTYPES = ("bf16", "int8", "4-bit")


@dataclass
class Result:
    """One contender with one number type.

    Attributes:
        start: None if it did not start.
        runs: load -> its runs; a load that failed has none.
        failures: load, or "start" -> why.
    """

    dtype: str
    name: str
    start: Start | None = None
    runs: dict[str, list[Timing]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        contenders: names of those that take part; None is all.
        work: folder for the checkpoint, its GGUF files and logs; what is in it already is used again.
    """

    shape: Shape
    dtypes: tuple[str, ...]
    loads: tuple[Load, ...]
    repeats: int
    threads: int
    peers: Peers
    work: Path
    contenders: frozenset[str] | None = None

    @property
    def max_model_len(self) -> int:
        """That every load fits."""
        return max(load.max_len for load in (*self.loads, WARM_UP))


def compare(plan: Plan) -> tuple[Limits, list[Result]]:
    """Run it all. What fails is a part of the results.

    Raises:
        ValueError: the limits cannot be measured, or llama.cpp's files cannot be made.
    """
    try:
        before = measure_limits(plan.threads)
        logger.info("memory %.1f GB/s, bfloat16 %.0f GFLOP/s", before.memory / 1e9, before.bfloat16 / 1e9)
        make_files(plan)
        results = [result for dtype in plan.dtypes for result in compare_dtype(plan, dtype)]
        return before.best(measure_limits(plan.threads)), results
    except ContenderError as error:
        raise ValueError(str(error)) from None


def make_files(plan: Plan) -> None:
    """Write what is not there yet: the checkpoint; if llama.cpp's tools are given, a GGUF file of each number type."""
    from safetensors.torch import load_file

    model, folder = plan.work / "model", plan.peers.llama_bin
    if not (model / "model.safetensors").is_file():
        logger.info("writing the checkpoint")
        write_checkpoint(model, plan.shape)
    if folder is None:
        return
    llama_cpp.check_tools(folder)
    source = gguf_path(plan.work, "bf16")
    if not source.is_file():
        write_gguf(source, plan.shape, load_file(model / "model.safetensors"))
    for dtype in plan.dtypes:
        if not gguf_path(plan.work, dtype).is_file():
            logger.info("writing %s", gguf_path(plan.work, dtype).name)
            llama_cpp.quantize(folder, source, gguf_path(plan.work, dtype), GGUF_TYPES[dtype])


def compare_dtype(plan: Plan, dtype: str) -> list[Result]:
    """Run all loads with one number type."""
    contenders, absent = contenders_of(dtype, plan.peers, plan.work, plan.threads, plan.max_model_len)
    if plan.contenders is not None:
        contenders = [contender for contender in contenders if contender.name in plan.contenders]
        absent = {name: reason for name, reason in absent.items() if name in plan.contenders}
    results = {contender.name: Result(dtype, contender.name) for contender in contenders}
    try:
        started = [c for c in contenders if _start(c, results[c.name], plan.shape.vocab_size)]
        _take_turns(started, results, plan)
    finally:
        for contender in contenders:
            contender.close()
    missing = [Result(dtype, name, failures={"start": reason}) for name, reason in absent.items()]
    return [*results.values(), *missing]


def _start(contender: Contender, result: Result, vocab_size: int) -> bool:
    try:
        result.start = contender.start()
        logger.info("%s %s: first token after %.1f s", result.dtype, result.name, result.start.seconds)
        contender.run(WARM_UP, vocab_size, 0)
    except ContenderError as error:
        logger.warning("%s %s: %s", result.dtype, result.name, error)
        result.failures["start"] = str(error)
        return False
    return True


def _take_turns(contenders: Sequence[Contender], results: dict[str, Result], plan: Plan) -> None:
    for load, run, contender in turns(contenders, plan.loads, plan.repeats):
        result = results[contender.name]
        if load.name in result.failures:
            continue
        try:
            timing = contender.run(load, plan.shape.vocab_size, run)
        except ContenderError as error:
            logger.warning("%s %s %s: %s", result.dtype, result.name, load.name, error)
            result.failures[load.name] = str(error)
            result.runs.pop(load.name, None)
            continue
        logger.info("%s %s %s: %s", result.dtype, result.name, load.name, timing)
        result.runs.setdefault(load.name, []).append(timing)


def turns(
    contenders: Sequence[Contender], loads: Sequence[Load], repeats: int
) -> Iterator[tuple[Load, int, Contender]]:
    """Who runs what, and which run of it that is: back and forth, so that what drifts meets all alike.

    A contender that computes a context anew in each run has one run of such a load.
    """
    for load in loads:
        for run in range(repeats):
            for contender in contenders if run % 2 == 0 else reversed(contenders):
                if run == 0 or not load.context_len or contender.keeps_context:
                    yield load, run, contender
