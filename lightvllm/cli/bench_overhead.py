"""`lightvllm bench overhead`: what the server adds to the engine's time."""

import argparse
import dataclasses

from lightvllm.cli.flags import add_engine_flags, given
from lightvllm.cli.measurement import add_json_flag, add_number, print_measurement
from lightvllm.cli.parser import Parser, add_verb
from lightvllm.config import DEFAULT_MODEL, EngineConfig

DESCRIPTION = """
The same requests run on the engine in this process, driven step by step, and over HTTP on a server that is started for
it, with the same settings. The two take turns; every figure is the median of --repeats runs, in which all requests are
sent at once with prompts that nobody has seen before. The client runs on this machine, too, and its work counts."""


def add_parser(kinds: "argparse._SubParsersAction[Parser]") -> None:
    """Add the measurement to `bench`."""
    parser = add_verb(kinds, "overhead", run, "what the server adds to the engine's time", DESCRIPTION)
    parser.add_argument(
        "--concurrency", default="1,8,64", metavar="N,N,...", help="requests at the same time (default: 1,8,64)"
    )
    add_number(parser, "--input-len", 128, "prompt tokens of each")
    add_number(parser, "--output-len", 64, "tokens to generate for each")
    add_number(parser, "--repeats", 5, "runs to take the median of")
    add_json_flag(parser)
    add_engine_flags(parser, skip={"skip_tokenizer_init", "tokenizer", "chat_template", "generation_config"})


def run(args: argparse.Namespace) -> int:
    """Run the measurement; the exit code."""
    from lightvllm.bench.load.overhead import measure_overhead, overhead_text
    from lightvllm.bench.report import describe_setting, setting_text
    from lightvllm.cli.serve import SERVER_DEFAULTS
    from lightvllm.llm import LLM

    try:
        concurrencies = [int(text) for text in args.concurrency.split(",")]
    except ValueError:
        raise ValueError(f"concurrency: {args.concurrency!r} is no list of integers such as 1,8,64") from None
    options = {"model": str(DEFAULT_MODEL)} | SERVER_DEFAULTS | given(args, EngineConfig)
    with LLM(**options) as llm:
        setting = describe_setting(llm)
        overheads = measure_overhead(llm, options, concurrencies, args.input_len, args.output_len, args.repeats)
    record = setting | {
        "input_len": args.input_len,
        "output_len": args.output_len,
        "repeats": args.repeats,
        "results": [dataclasses.asdict(overhead) for overhead in overheads],
    }
    sizes = f"{args.input_len} prompt + {args.output_len} generated tokens, medians of {args.repeats} runs"
    print_measurement(args, record, setting_text(setting), f"{sizes}\n\n{overhead_text(overheads)}")
    return 0
