"""`lightvllm bench steps`: what each idea of an engine is worth."""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lightvllm.cli.measurement import add_json_flag, add_number, check_plot, print_measurement
from lightvllm.cli.parser import Parser, add_verb, did_you_mean
from lightvllm.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from lightvllm.bench.compare.loads import Load
    from lightvllm.bench.steps import Step

DESCRIPTION = """
The same requests, all sent at once, with one idea more at every step: a naive loop, a KV cache, paged blocks,
continuous batching, the prefix cache, fast attention and kernels, int8 weights. Every step runs on the CPU in a process
of its own, and decodes greedily past the end-of-sequence token; the tokens are compared. Prompts are random tokens that
begin alike.

  lightvllm bench steps --plot steps.png
  lightvllm bench steps --only batching,kernels --num-prompts 64 --repeats 3"""


def add_parser(kinds: "argparse._SubParsersAction[Parser]") -> None:
    """Add the measurement to `bench`."""
    parser = add_verb(kinds, "steps", run, "what each idea is worth, switched on one after the other", DESCRIPTION)
    parser.add_argument("--model", metavar="TEXT", help="checkpoint folder (default: the model that is shipped)")
    add_number(parser, "--num-prompts", 24, "requests", dest="num_requests")
    add_number(parser, "--prefix-len", 128, "prompt tokens that are the same for all requests")
    _add_lengths(parser, "--input-len", (16, 64), "prompt tokens after these")
    _add_lengths(parser, "--output-len", (16, 48), "tokens to generate for each")
    parser.add_argument(
        "--max-model-len",
        type=int,
        metavar="N",
        help="tokens that a contiguous cache reserves, and the engine's limit (default: the model's positions)",
    )
    parser.add_argument("--only", metavar="NAME,...", default="", help="of the steps, only these")
    add_number(parser, "--repeats", 1, "runs to take the median of")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures: .png, .svg or .pdf")
    add_json_flag(parser)


def _add_lengths(parser: Parser, flag: str, default: tuple[int, int], text: str) -> None:
    shown = "-".join(map(str, default))
    parser.add_argument(
        flag, type=_lengths, metavar="N[-N]", default=default, help=f"{text}, a number or a range (default: {shown})"
    )


def _lengths(text: str) -> tuple[int, int]:
    least, dash, most = text.partition("-")
    try:
        return int(least), int(most if dash else least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range such as 16-64") from None


def run(args: argparse.Namespace) -> int:
    """Run the measurement; the exit code."""
    from lightvllm.bench.machine import describe_machine
    from lightvllm.bench.steps import STEPS, draw_steps, measure_steps, steps_text
    from lightvllm.hub import resolve_model
    from lightvllm.model_config import ModelConfig

    load = _load(args)
    steps = _narrowed(STEPS, [name for name in args.only.split(",") if name])
    if args.repeats < 1:
        raise ValueError(f"--repeats: {args.repeats} is out of range, expected at least 1")
    if args.plot:
        check_plot(args.plot)
    model = resolve_model(args.model) if args.model else DEFAULT_MODEL
    config = ModelConfig.from_pretrained(model)
    max_model_len = config.max_position_embeddings if args.max_model_len is None else args.max_model_len
    with tempfile.TemporaryDirectory() as folder:
        outcomes = measure_steps(
            steps, model, config.vocab_size, load, max_model_len, args.repeats, Path(folder), sys.stderr.isatty()
        )
    machine = describe_machine()
    record = {
        "machine": machine,
        "model": str(model),
        "workload": {
            "num_requests": load.num_requests,
            "prefix_len": load.context_len,
            "input_lens": load.input_lens,
            "output_lens": load.output_lens,
            "max_model_len": max_model_len,
            "repeats": args.repeats,
        },
        "steps": [outcome.record() for outcome in outcomes],
    }
    sizes = f"{load.context_len} shared + {_range(load.input_lens)} prompt tokens, {_range(load.output_lens)} generated"
    setting = (
        f"{model}: {load.num_requests} requests of {sizes}\n"
        f"{machine['cpu']['name']}, {machine['cpu']['threads']} threads\n"
    )
    print_measurement(args, record, setting, steps_text(outcomes, load.num_requests))
    if args.plot:
        draw_steps(outcomes, args.plot)
    return 0


def _load(args: argparse.Namespace) -> "Load":
    from lightvllm.bench.compare.loads import Load

    for flag, value, least in (("--num-prompts", args.num_requests, 1), ("--prefix-len", args.prefix_len, 0)):
        if value < least:
            raise ValueError(f"{flag}: {value} is out of range, expected at least {least}")
    for flag, (first, last) in (("--input-len", args.input_len), ("--output-len", args.output_len)):
        if not 1 <= first <= last:
            raise ValueError(f"{flag}: {first}-{last} is out of range, expected at least 1, and the smaller one first")
    return Load(
        name="steps",
        num_requests=args.num_requests,
        input_lens=args.input_len,
        output_lens=args.output_len,
        context_len=args.prefix_len,
    )


def _narrowed(steps: "tuple[Step, ...]", names: list[str]) -> "list[Step]":
    """Those named, in their own order; all where none is."""
    known = [step.name for step in steps]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f", expected some of {', '.join(known)}"
            raise ValueError(f"--only: {name!r} is unknown{hint}")
    return [step for step in steps if not names or step.name in names]


def _range(lengths: tuple[int, int]) -> str:
    return f"{lengths[0]}" if lengths[0] == lengths[1] else f"{lengths[0]} to {lengths[1]}"
