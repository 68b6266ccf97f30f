"""`lightvllm demo`: a batch of questions about a small database, answered together."""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightvllm.cli.flags import add_engine_flags
from lightvllm.cli.model import failure, open_llm, sampling_params
from lightvllm.cli.parser import Parser, add_verb
from lightvllm.cli.sql import GREEDY, open_console, print_result, render

if TYPE_CHECKING:
    import sqlite3

    from rich.console import Console, RenderableType

    from lightvllm.llm import LLM
    from lightvllm.outputs import RequestOutput

DESCRIPTION = """
All questions are sent at once and share the computation of the schema they begin with; each answer is run as soon as
it is complete. The last line says what it took."""
SHOWN_ROWS = 8


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "demo", run, "see a batch of questions about a database answered", DESCRIPTION)
    parser.add_argument(
        "--ask", action="append", metavar="QUESTION", help="ask this instead; may be given several times"
    )
    add_engine_flags(parser, skip={"skip_tokenizer_init"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code. SQL that does not run is shown, and no failure of the demo."""
    from lightvllm.sql import DEMO_QUESTIONS, build_messages, schema_prompt

    console = open_console()
    with _demo_database() as connection, open_llm(args) as llm:
        schema = schema_prompt(connection)
        console.print(schema, style="dim", markup=False, soft_wrap=True)
        console.print()
        questions = enumerate(args.ask or DEMO_QUESTIONS, start=1)
        demo = Demo(llm, connection, console, {str(number): question for number, question in questions})
        params = sampling_params(llm, args, **GREEDY)
        for request_id, question in demo.questions.items():
            prompt = render(llm, build_messages(schema, question))
            llm.engine.add_request(request_id, prompt, params, add_special_tokens=False, stream=True)
        outputs = demo.answer()
        line = figures_line(llm, outputs, demo.engine_seconds)
        console.print(line, style="bold", markup=False, soft_wrap=True)
    return 1 if any(map(failure, outputs)) else 0


@dataclass
class Demo:
    """The questions in the engine, by the ids of their requests; `engine_seconds` counts no query and no printing."""

    llm: "LLM"
    connection: "sqlite3.Connection"
    console: "Console"
    questions: dict[str, str]
    engine_seconds: float = 0.0

    def answer(self) -> list["RequestOutput"]:
        """Run the engine until all are answered, showing the answers grow; returns the outputs as they were done."""
        from rich.console import Group
        from rich.live import Live
        from rich.text import Text

        unfinished: dict[str, RenderableType] = {i: Text(f"{i}. {q}") for i, q in self.questions.items()}
        outputs = []
        # Where nobody watches there is nothing to repaint: each answer is printed once, when it is complete.
        watched = Live(console=self.console, transient=True) if self.console.is_terminal else contextlib.nullcontext()
        with watched as live:
            while self.llm.engine.has_unfinished_requests():
                start = time.perf_counter()
                changed = self.llm.engine.step()
                self.engine_seconds += time.perf_counter() - start
                for output in changed:
                    request_id = output.request_id
                    unfinished[request_id] = Text(f"{request_id}. {self.questions[request_id]}  ").append(
                        output.outputs[0].text, style="cyan"
                    )
                    if output.finished:
                        del unfinished[request_id]
                        outputs.append(output)
                        self._show(output)
                if live is not None:
                    live.update(Group(*unfinished.values()))
        return outputs

    def _show(self, output: "RequestOutput") -> None:
        """The question, the SQL written for it, and what it gives."""
        from rich.text import Text

        from lightvllm.sql import extract_sql, run_query

        self.console.print(Text(f"{output.request_id}. {self.questions[output.request_id]}", style="bold"))
        why = failure(output)
        if why is not None:
            self.console.print(Text(f"The model failed: {why}", style="red"))
            return
        sql = extract_sql(output.outputs[0].text)
        self.console.print(Text(f"  {sql}", style="cyan"))
        print_result(self.console, run_query(self.connection, sql), SHOWN_ROWS)


def figures_line(llm: "LLM", outputs: list["RequestOutput"], seconds: float) -> str:
    """What the answers took, in one line.

    Args:
        seconds: the engine's time.
    """
    num_prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    num_output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    first = [o.metrics.time_to_first_token for o in outputs if o.metrics and o.metrics.time_to_first_token is not None]
    stats = llm.get_metrics()
    return ", ".join(
        [
            f"{len(outputs)} requests",
            f"{num_prompt_tokens} prompt + {num_output_tokens} output tokens",
            f"time to first token {statistics.median(first) if first else float('nan'):.3f} s",
            f"{num_output_tokens / seconds:.0f} tokens/s",
            f"{stats.peak_num_used_blocks} of {stats.num_blocks} KV blocks used",
            f"prefix-cache hit rate {stats.prefix_cache_hit_rate:.0%}",
        ]
    )


@contextlib.contextmanager
def _demo_database() -> Iterator["sqlite3.Connection"]:
    from lightvllm.sql import build_demo_database, open_readonly

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "demo.sqlite"
        build_demo_database(path)
        with contextlib.closing(open_readonly(path)) as connection:
            yield connection
