"""`lightvllm bench scaling`: how the engine's cost grows."""

import argparse
import dataclasses
import os
import tempfile
from pathlib import Path

from lightvllm.cli.measurement import add_json_flag, add_number, check_plot, print_measurement
from lightvllm.cli.parser import Parser, add_verb

DESCRIPTION = """
A model of Qwen3-0.6B's shape with random weights decodes one request in contexts of 1,024, 2,048, ... tokens, batches
of 1, 2, 4, ... requests, and 1 and 32 requests with 1, 2, ... threads. Figures are medians of --repeats runs."""
DTYPES = ("bf16", "int8", "4-bit")


def add_parser(kinds: "argparse._SubParsersAction[Parser]") -> None:
    """Add the measurement to `bench`."""
    parser = add_verb(kinds, "scaling", run, "how cost grows with context, batch and threads", DESCRIPTION)
    parser.add_argument("--weights", choices=DTYPES, default="bf16", help="number type (default: bf16)")
    add_number(parser, "--max-context", 32_768, "longest context")
    add_number(parser, "--max-batch", 128, "most requests at once")
    add_number(parser, "--threads", os.cpu_count() or 1, "most threads")
    add_number(parser, "--repeats", 3, "runs to take the median of")
    parser.add_argument("--work", metavar="FOLDER", type=Path, help="keep the model there, for the next time")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the curves: .png, .svg or .pdf")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the measurement; the exit code."""
    from lightvllm.bench.machine import describe_machine
    from lightvllm.bench.random_checkpoint import Shape
    from lightvllm.bench.scaling import LEAST_CONTEXT, draw_scaling, measure_scaling, scaling_text

    for name, least in (("max_context", LEAST_CONTEXT), ("max_batch", 1), ("threads", 1), ("repeats", 1)):
        if getattr(args, name) < least:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: {getattr(args, name)} is out of range, expected at least {least}")
    if args.plot:
        check_plot(args.plot)
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        sizes = (args.max_context, args.max_batch, args.repeats)
        points = measure_scaling(work, args.weights, args.threads, *sizes, Shape())
    machine = describe_machine()
    record = {"machine": machine, "weights": args.weights, "points": [dataclasses.asdict(point) for point in points]}
    setting = f"{args.weights}, {args.threads} threads, {machine['cpu']['name']}; tokens/s\n"
    print_measurement(args, record, setting, scaling_text(points))
    if args.plot:
        draw_scaling(points, args.plot)
    return 0
