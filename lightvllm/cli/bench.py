"""`lightvllm bench`: measurements that anyone can repeat. Each prints a table, or JSON."""

import argparse
import dataclasses
from typing import Any

from lightvllm.bench.workload import Workload
from lightvllm.cli import bench_compare, bench_overhead, bench_scaling, bench_serve, bench_steps
from lightvllm.cli.flags import add_engine_flags, given
from lightvllm.cli.measurement import add_json_flag, add_number, print_measurement
from lightvllm.cli.model import open_llm
from lightvllm.cli.parser import Parser, add_verb
from lightvllm.config import DEFAULT_MODEL, EngineConfig

RANDOM = """
Prompts are random tokens drawn from --seed; decoding is greedy and goes on past the end-of-sequence token."""
MEDIANS = """ Every
figure is the median of --repeats runs, after a warm-up that does not count; each run finds the prefix cache empty."""
AGAINST = """

With --against transformers its `generate` takes turns with the engine on the same prompts, in the same number type and
batched as widely. A ratio above 1 says how many times better the engine is.
"""
# Flags that would change nothing: prompts and outputs are token ids, and sampling is as said above.
NOT_BENCHED = {"tokenizer", "skip_tokenizer_init", "chat_template", "generation_config", "max_logprobs"}


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb, which has verbs of its own, to the command line."""
    parser = verbs.add_parser("bench", help="measure latency, throughput, start-up and more", description="Measure.")
    parser.set_defaults(help=parser.format_help)
    kinds = parser.add_subparsers(metavar="WHAT", title="measurements", parser_class=Parser)

    summary = "how soon the tokens of a request come"
    latency = add_verb(kinds, "latency", run_serving, summary, RANDOM + MEDIANS + AGAINST)
    add_number(latency, "--batch-size", 1, "requests sent together", dest="num_requests")
    _add_workload_flags(latency, input_len=128, output_len=32, prefix_len=0)
    _add_against(latency)

    summary = "how many tokens a second many requests get"
    throughput = add_verb(kinds, "throughput", run_serving, summary, RANDOM + MEDIANS + AGAINST)
    add_number(throughput, "--num-prompts", 32, "requests, sent all at once", dest="num_requests")
    _add_workload_flags(throughput, input_len=128, output_len=32, prefix_len=0)
    _add_against(throughput)

    summary = "what the prefix cache saves where requests share a prefix"
    prefix = add_verb(kinds, "prefix", run_prefix, summary, RANDOM + MEDIANS)
    add_number(prefix, "--num-prompts", 32, "requests, sent all at once", dest="num_requests")
    _add_workload_flags(prefix, input_len=16, output_len=1, prefix_len=1024)

    summary = "the time of a step outside the model, with many requests in decode"
    host = add_verb(kinds, "host", run_host, summary, RANDOM)
    add_number(host, "--num-prompts", 256, "requests that run together", dest="num_requests")
    add_number(host, "--input-len", 100, "prompt tokens of each")
    add_number(host, "--steps", 64, "steps to measure")

    startup = add_verb(kinds, "startup", run_startup, "from starting the program to its first token")
    startup.add_argument("--model", metavar="TEXT", help="checkpoint folder (default: the model that is shipped)")
    add_number(startup, "--repeats", 5, "processes to start")

    for measurement in (latency, throughput, prefix, host, startup):
        add_json_flag(measurement)
    for measurement in (latency, throughput):
        add_engine_flags(measurement, skip=NOT_BENCHED)
    add_engine_flags(prefix, skip={*NOT_BENCHED, "enable_prefix_caching"})
    add_engine_flags(host, skip=NOT_BENCHED - {"tokenizer", "skip_tokenizer_init"})
    bench_serve.add_parser(kinds)
    bench_overhead.add_parser(kinds)
    bench_compare.add_parser(kinds)
    bench_scaling.add_parser(kinds)
    bench_steps.add_parser(kinds)


def _add_workload_flags(parser: Parser, input_len: int, output_len: int, prefix_len: int) -> None:
    add_number(parser, "--input-len", input_len, "prompt tokens that each request has of its own")
    add_number(parser, "--output-len", output_len, "tokens to generate for each")
    add_number(parser, "--prefix-len", prefix_len, "prompt tokens before these, the same for all requests")
    add_number(parser, "--repeats", 3, "runs to take the median of")


def _add_against(parser: Parser) -> None:
    parser.add_argument("--against", choices=["transformers"], help="run this, too, and print the ratio")


def run_serving(args: argparse.Namespace) -> int:
    """Measure latency or throughput, which differ in how many requests they send."""
    from lightvllm.bench.report import comparison_record, comparison_text, describe_setting, setting_text
    from lightvllm.bench.serving import compare

    workload = _workload(args)
    with open_llm(args, skip_tokenizer_init=True) as llm:
        comparison = compare(llm, workload, args.repeats, args.against)
        setting = describe_setting(llm)
    record = setting | comparison_record(workload, comparison)
    print_measurement(args, record, setting_text(setting), comparison_text(workload, comparison))
    return 0


def run_prefix(args: argparse.Namespace) -> int:
    """Measure the same workload with the prefix cache on and off."""
    from lightvllm.bench.figures import ratios
    from lightvllm.bench.report import comparison_record, describe_setting, figures_table, setting_text
    from lightvllm.bench.serving import compare

    workload = _workload(args)
    record: dict[str, Any] = {}
    figures = {}
    for name, is_on in (("cache on", True), ("cache off", False)):
        with open_llm(args, skip_tokenizer_init=True, enable_prefix_caching=is_on) as llm:
            comparison = compare(llm, workload, args.repeats)
            setting = describe_setting(llm)
        record[name.replace(" ", "_")] = comparison_record(workload, comparison)
        figures[name] = comparison.medians()["lightvllm"]
    record["ratio"] = ratios(*figures.values())
    text = f"{workload}, medians of {args.repeats} runs\n\n{figures_table(figures)}"
    print_measurement(args, setting | record, setting_text(setting), text)
    return 0


def run_host(args: argparse.Namespace) -> int:
    """Measure the time of a step outside the model."""
    from lightvllm.bench.host import measure_host_time
    from lightvllm.bench.report import describe_setting, host_text, setting_text

    with open_llm(args) as llm:
        host = measure_host_time(llm, args.num_requests, args.steps, args.input_len)
        setting = describe_setting(llm)
    print_measurement(args, setting | dataclasses.asdict(host), setting_text(setting), host_text(host))
    return 0


def run_startup(args: argparse.Namespace) -> int:
    """Measure the start of the program."""
    from lightvllm.bench.machine import describe_machine
    from lightvllm.bench.report import startup_text
    from lightvllm.bench.startup import measure_startup

    model = args.model or str(DEFAULT_MODEL)
    startup = measure_startup(["--model", model], args.repeats)
    record = {"model": model, "machine": describe_machine()} | dataclasses.asdict(startup)
    print_measurement(args, record, model, startup_text(startup))
    return 0


def _workload(args: argparse.Namespace) -> Workload:
    return Workload(
        num_requests=args.num_requests,
        input_len=args.input_len,
        output_len=args.output_len,
        prefix_len=args.prefix_len,
        seed=given(args, EngineConfig).get("seed", 0),
    )
