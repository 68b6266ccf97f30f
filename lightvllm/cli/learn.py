"""`lightvllm learn`: the engine's ideas at work, in simulations that drive the real scheduler."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from lightvllm.cli.measurement import add_json_flag, check_plot, print_measurement
from lightvllm.cli.parser import Parser, add_verb

DESCRIPTION = """Watch the engine's ideas at work. Requests arrive over simulated time; what becomes of them is decided
by the engine's own scheduler, prefix cache and block pool. No model is loaded and nothing is measured: a step costs
what --step-ms and its like say. Only `kv` has no requests: it counts, from a model's config.

  lightvllm learn batching --requests 8 --rate 4
  lightvllm learn chunked --max-num-batched-tokens 8192,512 --plot stalls.png"""
# The module of lightvllm.learn -> a line for the list, and what to look for in its table and picture.
SIMULATORS = {
    "paged": (
        "PagedAttention: memory in blocks against memory in one piece",
        "A request that reserves memory for its longest possible output wastes what it does not use.\n"
        "Blocks are taken as its tokens come, so more requests fit.",
    ),
    "kv": (
        "the KV cache: operations and bytes with and without it",
        "Without a cache each new token computes the whole sequence again.\n"
        "With it each token is computed once, and its keys and values are kept and read.",
    ),
    "batching": (
        "continuous against static batching, a timeline for each request",
        "A static batch runs until its longest request ends; the places of the others stand idle.\n"
        "Continuous batching gives a place to the next request in the very next step.",
    ),
    "prefix": (
        "prefix caching: prompts that begin alike, with and without the cache",
        "Prompts that begin alike share the blocks of their beginning: the first request computes it,\n"
        "the others find it, and have their first token sooner.",
    ),
    "chunked": (
        "chunked prefill: how long a long prompt stalls those who decode",
        "A step takes as long as its tokens, and all who take part wait for it. Cut into chunks, a long prompt\n"
        "stalls the others for less at a time, and has its own first token later.",
    ),
    "preempt": (
        "preemption: what happens when the KV cache's blocks run out",
        "When a request needs a block and none is free, the last one loses its own, waits,\n"
        "and computes its tokens again.",
    ),
}


class _SimulatorParser(Parser):
    """Asks the simulator for its flags when it is used: no other verb need load the scheduler for them."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        _simulator(self.get_default("verb")).add_flags(self)
        return super().parse_known_args(args, namespace)


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb, which has verbs of its own, to the command line."""
    parser = verbs.add_parser("learn", help="watch the engine's ideas at work, simulated", description=DESCRIPTION)
    parser.set_defaults(help=parser.format_help)
    kinds: argparse._SubParsersAction[Parser] = parser.add_subparsers(
        metavar="WHAT", title="simulators", parser_class=_SimulatorParser
    )
    for name, (summary, explanation) in SIMULATORS.items():
        simulator = add_verb(kinds, name, run, summary, f"\n{explanation}")
        simulator.add_argument("--plot", metavar="FILE", type=Path, help="draw it: .png, .svg or .pdf")
        add_json_flag(simulator)


def run(args: argparse.Namespace) -> int:
    """Run a simulator; the exit code."""
    import msgspec

    if args.plot:
        check_plot(args.plot)
    result = _simulator(args.verb).from_args(args)
    _, explanation = SIMULATORS[args.verb]
    print_measurement(args, msgspec.to_builtins(result), f"{explanation}\n", result.table())
    if args.plot:
        result.plot().savefig(args.plot, dpi=150)
    return 0


def _simulator(name: str) -> Any:
    return import_module(f"lightvllm.learn.{name}")
