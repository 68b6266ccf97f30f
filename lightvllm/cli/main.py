"""The `lightvllm` command: finds the verb, runs it, and turns a user's mistakes into one line each.

Nothing here or at the top of a verb's file imports torch or a tokenizer, so that --help answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence

from lightvllm import __version__
from lightvllm.cli import bench, chat, demo, env, eval, generate, learn, quantize, serve, sql
from lightvllm.cli.parser import Parser

VERBS = (serve, generate, chat, sql, demo, learn, bench, quantize, eval, env)
EXIT_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 130, 141


def build_parser() -> Parser:
    """The parser with all verbs."""
    parser = Parser(prog="lightvllm", description="Run language models: on a laptop's CPU, on a GPU.")
    parser.add_argument("--version", action="version", version=f"lightvllm {__version__}")
    parser.set_defaults(help=parser.format_help)
    verbs = parser.add_subparsers(metavar="VERB", title="verbs", parser_class=Parser)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Exits by itself only on --help and wrong arguments."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        print(args.help(), end="")
        return 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lightvllm").setLevel("DEBUG" if args.debug else args.log_level)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader is gone. What Python would still write when it exits goes nowhere, instead of failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except ValueError as error:
        if args.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
