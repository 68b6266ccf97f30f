"""`lightvllm bench compare`: this engine beside others on the same machine."""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lightvllm.cli.measurement import add_json_flag, add_number, check_plot, print_measurement
from lightvllm.cli.parser import Parser, add_verb, did_you_mean

if TYPE_CHECKING:
    from lightvllm.bench.compare.turns import Plan

DESCRIPTION = """
A model of Qwen3-0.6B's shape with random weights runs on this engine and on each peer that is given, in bf16, int8 and
4-bit. All do the same loads in turns, each in its own process, which is stopped while another one's turn is. A figure
is the median of --repeats runs, beside what the machine allows, which is measured too.

  lightvllm bench compare --vllm-python ~/vllm/bin/python --llama-bin ~/llama.cpp/build/bin \\
      --openvino-python ~/openvino/bin/python --transformers-python --json compare.json --plot compare.png"""
CONTENDERS = ("lightvllm", "vLLM", "transformers", "OpenVINO", "llama.cpp")


def add_parser(kinds: "argparse._SubParsersAction[Parser]") -> None:
    """Add the measurement to `bench`."""
    parser = add_verb(
        kinds, "compare", run, "this engine beside vLLM, llama.cpp, OpenVINO and transformers", DESCRIPTION
    )
    peers = parser.add_argument_group("peers", "each in an environment of its own; one that is not given is left out")
    peers.add_argument("--vllm-python", metavar="FILE", help="Python with vLLM's CPU build")
    peers.add_argument("--openvino-python", metavar="FILE", help="Python with openvino-genai (int8 and 4-bit)")
    peers.add_argument(
        "--transformers-python",
        metavar="FILE",
        nargs="?",
        const=sys.executable,
        help="Python with it (default: this one)",
    )
    peers.add_argument("--llama-bin", metavar="FOLDER", type=Path, help="llama.cpp's tools; OpenVINO needs them, too")
    parser.add_argument(
        "--only",
        metavar="NAME,...",
        default="",
        help="number types, contenders and loads; of each kind named, only those",
    )
    add_number(parser, "--repeats", 3, "runs to take the median of")
    add_number(parser, "--threads", os.cpu_count() or 1, "threads that each contender gets")
    parser.add_argument("--quick", action="store_true", help="tiny loads, once: to see that every contender works")
    parser.add_argument(
        "--work", metavar="FOLDER", type=Path, help="keep the model's files and the logs there, for the next time"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures: .png, .svg or .pdf")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Run the measurement; the exit code."""
    from lightvllm.bench.compare import plot, report
    from lightvllm.bench.compare.turns import compare
    from lightvllm.bench.machine import describe_machine

    if args.plot:
        check_plot(args.plot)
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(args, args.work or Path(folder))
        plan.work.mkdir(parents=True, exist_ok=True)
        limits, results = compare(plan)
    machine = describe_machine()
    record = {"machine": machine} | report.record(plan, limits, results)
    print_measurement(args, record, machine["cpu"]["name"], report.text(plan, limits, results))
    if args.plot:
        plot.draw(plan, limits, results, args.plot)
    return 0


def plan_of(args: argparse.Namespace, work: Path) -> "Plan":
    """What the flags ask for."""
    from lightvllm.bench.compare.contenders import Peers
    from lightvllm.bench.compare.loads import LOADS, QUICK_LOADS
    from lightvllm.bench.compare.turns import DTYPES, Plan
    from lightvllm.bench.random_checkpoint import Shape

    for flag in ("repeats", "threads"):
        if getattr(args, flag) < 1:
            raise ValueError(f"--{flag}: {getattr(args, flag)} is out of range, expected at least 1")
    plan = Plan(
        shape=Shape(),
        dtypes=DTYPES,
        loads=QUICK_LOADS if args.quick else LOADS,
        repeats=1 if args.quick else args.repeats,
        threads=args.threads,
        peers=Peers(args.vllm_python, args.openvino_python, args.transformers_python, args.llama_bin),
        work=work,
    )
    return narrowed(plan, [name for name in args.only.split(",") if name])


def narrowed(plan: "Plan", names: list[str]) -> "Plan":
    """The plan with, of each kind that has a name here, only those named."""
    loads = {load.name for load in plan.loads}
    for name in names:
        known = {*plan.dtypes, *CONTENDERS, *loads}
        if name not in known:
            hint = did_you_mean(name, known) or f", expected some of {', '.join(sorted(known))}"
            raise ValueError(f"--only: {name!r} is unknown{hint}")
    if set(plan.dtypes) & set(names):
        plan = replace(plan, dtypes=tuple(dtype for dtype in plan.dtypes if dtype in names))
    if loads & set(names):
        plan = replace(plan, loads=tuple(load for load in plan.loads if load.name in names))
    if set(CONTENDERS) & set(names):
        plan = replace(plan, contenders=frozenset(CONTENDERS) & set(names))
    return plan
