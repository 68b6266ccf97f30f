"""The engine on a GPU, end to end, on random weights in the shapes of Qwen3's models: python benchmarks/gpu_engine.py

    python benchmarks/gpu_engine.py [--models 0.6B,8B] [--only PART] [--json FILE]

The GPU's own rates are measured first, in the same run. Each engine is a process of its own, and its time is limited.
Weights are drawn where they lie (`load_format="dummy"`); only the start reads a checkpoint, which is written for it.

    decode        a request alone, 512 tokens; steps of 32 and 256 requests; prompts of 4,096 tokens
    growth        the first model: 1 to 256 requests, 512 to 32,768 tokens of context
    sizes         as decode, of all four models
    quantization  as decode, with weights of 8 and of 4 bits
    timeline      in which share of a step the GPU waits, and for which kernels it works
    workload      nano-vllm's 256 requests, beside transformers' continuous batching
    start         from starting Python to the first token, with and without captured graphs
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_engine_start import measure_start
from gpu_engine_text import (
    Key,
    Target,
    figures_text,
    growth_text,
    start_text,
    targets_text,
    timeline_text,
    weight_bytes,
    workload_text,
)
from gpu_rates import Rates, require_gpu, write_json

from lightvllm.bench.job import run_job
from lightvllm.bench.random_checkpoint import QWEN3, write_config

BATCHES, FEW_BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256], [1, 32, 256]
CONTEXTS = [512, 2048, 8192, 32_768]
PREFILLS = [4096]
TIMELINES = [256, 1]
OUTPUT_LEN = 512
WEIGHT_SHARES = {"0.6B": 0.70, "8B": 0.85}  # of the weight-bytes limit, decode of one request
AHEAD, HOST_GAP, START = 5.0, 0.05, 8.0  # times transformers, share of a step, seconds
STARTS = 2
ENGINE_SECONDS, SHORT_SECONDS = 150, 120  # limits of processes
START_MODEL, WORKLOAD_MODEL = "0.6B", "0.6B"


def job(args: argparse.Namespace, work: Path, kind: str, model: str, seconds: float, **arguments: Any) -> Any:
    """What a process of its own finds; an argument `options` is of `LLM`.

    Raises:
        ValueError: it failed or took too long, in words.
    """
    folder = work / model
    write_config(folder, QWEN3[model])
    options = {"device": args.device} | args.options | arguments.pop("options", {})
    fields = {"kind": kind, "folder": str(folder.resolve()), "options": options, "arguments": arguments}
    return run_job("gpu_engine_jobs", fields, work, cwd=Path(__file__).parent, timeout=seconds)["value"]


@dataclass
class Bench:
    """A run: what was asked for, and what was found so far."""

    args: argparse.Namespace
    work: Path
    rates: Rates
    record: dict[str, Any]
    targets: list[Target] = field(default_factory=list)

    def job(self, kind: str, model: str, seconds: float, **arguments: Any) -> Any:
        """See `job`."""
        return job(self.args, self.work, kind, model, seconds, **arguments)

    def engine(self, model: str, dtype: str = "bf16") -> dict[str, Any]:
        """One engine's figures, for all parts that want them: measured once.

        Raises:
            ValueError: it failed, now or before.
        """
        name = model if dtype == "bf16" else f"{model} {dtype}"
        engines, failed, only = self.record["engines"], self.record["failed"], self.args.only
        if name in failed:
            raise ValueError(failed[name])
        if name not in engines:
            is_plain = dtype == "bf16"
            grows = is_plain and "growth" in only and model == self.args.models[0]
            is_traced = is_plain and "timeline" in only and model in self.args.models
            loads = {
                "batches": BATCHES if grows else FEW_BATCHES,
                "contexts": CONTEXTS if grows else [],
                "prefills": PREFILLS,
                "timelines": TIMELINES if is_traced else [],
                "output_len": OUTPUT_LEN,
            }
            options = {} if is_plain else {"quantization": dtype}
            try:
                engines[name] = self.job("engine", model, ENGINE_SECONDS, options=options, **loads)
            except ValueError as error:
                failed[name] = f"{name}: {error}"
                raise ValueError(failed[name]) from None
        return engines[name]


def decode(bench: Bench) -> str:
    """Each model as it is."""
    text = _engines(bench, [(model, "bf16") for model in bench.args.models])
    for model in WEIGHT_SHARES.keys() & bench.record["engines"].keys():
        share = weight_bytes(QWEN3[model], "bf16") / bench.rates.copy / bench.engine(model)["token"]
        name = f"decode of one request, {model}, of the weight-bytes limit"
        bench.targets.append(Target(name, share, WEIGHT_SHARES[model], ".0%"))
    return text


def _engines(bench: Bench, keys: list[Key]) -> str:
    """Their figures; one that fails leaves the others."""
    rows, failed = {}, []
    for model, dtype in keys:
        try:
            rows[model, dtype] = bench.engine(model, dtype)
        except ValueError as error:
            failed.append(f"failed: {error}")
    return "\n".join([*([figures_text(rows, bench.rates)] if rows else []), *failed])


def growth(bench: Bench) -> str:
    """With requests and context."""
    return growth_text(bench.args.models[0], bench.engine(bench.args.models[0]), bench.rates)


def sizes(bench: Bench) -> str:
    """With the model."""
    return _engines(bench, [(model, "bf16") for model in QWEN3])


def quantization(bench: Bench) -> str:
    """With rounded weights, beside those that are not."""
    return _engines(bench, [(model, dtype) for model in bench.args.models for dtype in ("bf16", "int8", "w4")])


def timeline(bench: Bench) -> str:
    """Where a step's time goes."""
    texts = []
    for model in bench.args.models:
        for load, traced in bench.engine(model)["timelines"].items():
            texts.append(timeline_text(f"{model}, {load}", traced))
            if load.startswith("decode"):
                name = f"host gap, {model}, {load}"
                bench.targets.append(Target(name, traced["host_gap"], HOST_GAP, ".1%", is_limit=True))
    return "\n\n".join(texts)


def workload(bench: Bench) -> str:
    """nano-vllm's, on both engines."""
    count, limit = bench.args.requests, bench.args.limit
    ours = bench.job("workload", WORKLOAD_MODEL, ENGINE_SECONDS, count=count)
    theirs = bench.job("transformers", WORKLOAD_MODEL, limit + SHORT_SECONDS, count=count, limit=limit)
    bench.record["workload"] = {"lightvllm": ours, "transformers": theirs}
    ahead = theirs["seconds"] / ours["seconds"]
    bench.targets.append(Target(f"{count} requests, times transformers' output tokens/s", ahead, AHEAD, ".1f"))
    return workload_text(f"{count} requests, {WORKLOAD_MODEL}", ours, theirs)


def start(bench: Bench) -> str:
    """From nothing to a token."""
    shape = asdict(QWEN3[START_MODEL])
    bench.job("checkpoint", START_MODEL, SHORT_SECONDS, shape=shape, device=bench.args.device)
    options = {"device": bench.args.device, "skip_tokenizer_init": True} | bench.args.options
    found = bench.record["start"] = {}
    for name, is_eager in (("without graphs", True), ("with graphs", False)):
        own = options | {"enforce_eager": is_eager}
        found[name] = measure_start(bench.work / START_MODEL, own, STARTS, SHORT_SECONDS)
    first = found["without graphs"]["first_token"]
    bench.targets.append(Target("start to first token without graphs, s", first, START, ".1f", is_limit=True))
    return start_text(START_MODEL, found)


PARTS: dict[str, Callable[[Bench], str]] = {
    part.__name__: part for part in (decode, growth, sizes, quantization, timeline, workload, start)
}


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="0.6B,8B", help=f"shapes, of {', '.join(QWEN3)}; default: 0.6B,8B")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help="may be given several times")
    parser.add_argument("--requests", type=int, default=256, help="of the workload, for both engines")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds after which transformers is ended there, done or not"
    )
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="further options of LLM")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--work", type=Path, help="folder for models, kept; default: one that is removed")
    args = parser.parse_args(words)
    args.models, args.only, args.device = args.models.split(","), args.only or list(PARTS), "cuda"
    for model in args.models:
        if model not in QWEN3:
            parser.error(f"models: {model!r} is unknown, expected some of {', '.join(QWEN3)}")
    if args.requests < 1:
        parser.error(f"requests: {args.requests} is out of range, expected at least 1")
    return args


def run(bench: Bench) -> None:
    """All parts that were asked for, each shown when it is done; one that fails leaves the others."""
    for name in bench.args.only:
        try:
            text = PARTS[name](bench)
        except ValueError as error:
            bench.record["failed"][name] = text = f"failed: {error}"
        print(f"\n{name}\n\n{text}", flush=True)
        write_json(bench.args.json, bench.record | {"targets": bench.targets})
    print(f"\n{targets_text(bench.targets)}", flush=True)


def main() -> None:
    """Print tables, and write them down."""
    args = parse_args()
    require_gpu()
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        described = job(args, work, "rates", args.models[0], SHORT_SECONDS)
        rates = Rates(**described["rates"])
        print(f"{described['gpu']}, torch {described['torch']}: {rates}", flush=True)
        run(Bench(args, work, rates, described | {"options": args.options, "engines": {}, "failed": {}}))


if __name__ == "__main__":
    main()
