"""`lightvllm sql`: a question about a SQLite file, answered with a query that can only read."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from lightvllm.cli.flags import add_engine_flags
from lightvllm.cli.model import failure, open_llm, sampling_params, stream
from lightvllm.cli.parser import Parser, add_verb

if TYPE_CHECKING:
    from rich.console import Console

    from lightvllm.llm import LLM
    from lightvllm.sampling_params import SamplingParams
    from lightvllm.sql import QueryResult
    from lightvllm.sql.prompt import Message

DESCRIPTION = """
Reads the schema of the file, lets the model write a query, and runs it read-only: nothing the model writes can change
the file. The exit code is 1 if the query does not run.

  lightvllm sql --db shop.sqlite "Which customers ordered more than ten times?"

Any chat model can be asked (--model); the one that comes with LightvLLM is trained for this."""

MAX_TOKENS = 256  # longer than any query worth running: an answer that goes on past it goes on for ever
# The likeliest query is the one to run, whatever the model's generation config says of chats.
GREEDY = {"temperature": 0.0, "max_tokens": MAX_TOKENS}


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    summary = "ask a SQLite database a question"
    parser = add_verb(verbs, "sql", run, summary, DESCRIPTION, arguments="--db FILE QUESTION")
    parser.add_argument("question", metavar="QUESTION", help="in plain English")
    parser.add_argument("--db", required=True, metavar="FILE", help="SQLite database")
    parser.add_argument("--max-rows", type=int, default=20, metavar="N", help="rows to show (default: 20)")
    add_engine_flags(parser, skip={"skip_tokenizer_init"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    from lightvllm.sql import answer, open_readonly

    if args.max_rows < 1:
        raise ValueError(f"max_rows: {args.max_rows} is out of range, expected at least 1")
    with contextlib.closing(open_readonly(args.db)) as connection, open_llm(args) as llm:
        params = sampling_params(llm, args, **GREEDY)
        result = answer(connection, args.question, lambda messages: _print_streaming(llm, messages, params))
    print_result(open_console(), result, args.max_rows)
    return 1 if result.error else 0


def render(llm: "LLM", messages: list["Message"]) -> str:
    """The prompt of the messages, to be tokenized without further special tokens."""
    return llm.get_tokenizer().apply_chat_template(messages, chat_template=llm.chat_template)


def open_console() -> "Console":
    """Standard output; where it is no terminal, wide enough that no cell is cut."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 1000)


def print_result(console: "Console", result: "QueryResult", max_rows: int) -> None:
    """The rows as a table, or why there are none."""
    from rich.padding import Padding

    from lightvllm.sql import result_table

    console.print(Padding(result_table(result, max_rows), (0, 0, 0, 2), expand=False))
    console.print()


def _print_streaming(llm: "LLM", messages: list["Message"], params: "SamplingParams") -> str:
    text = ""
    for output in stream(llm, render(llm, messages), params, add_special_tokens=False):
        print(output.outputs[0].text[len(text) :], end="", flush=True)
        text = output.outputs[0].text
    print("\n", flush=True)
    why = failure(output)
    if why is not None:
        raise ValueError(f"the model failed: {why}")
    return text
