"""`lightvllm chat`: a conversation in the terminal."""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from lightvllm.cli.flags import add_engine_flags, add_sampling_flags
from lightvllm.cli.model import failure, open_llm, sampling_params, stream
from lightvllm.cli.parser import Parser, add_verb, did_you_mean

if TYPE_CHECKING:
    from lightvllm.llm import LLM
    from lightvllm.sampling_params import SamplingParams

COMMANDS = {
    "/reset": "forget the conversation",
    "/system": "set the system message to the text that follows; none: have no system message",
    "/help": "show these lines",
    "/exit": "leave (so does Ctrl-D)",
}
HELP = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
DESCRIPTION = f"""
The answer is printed as it comes; Ctrl-C stops it. An answer is as long as the context allows, unless
--max-tokens says otherwise. Instead of a message you can type:

{HELP}

Standard input may be a pipe: each line is a message, and the answers are all that goes to standard output."""


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "chat", run, "talk with a model", DESCRIPTION)
    parser.add_argument("--system", metavar="TEXT", default="", help="the system message")
    add_engine_flags(parser, skip={"skip_tokenizer_init"})
    add_sampling_flags(parser, skip={"n", "logprobs", "prompt_logprobs", "detokenize"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    is_terminal = sys.stdin.isatty()
    has_failed = False
    with open_llm(args) as llm:
        chat = Chat(llm, sampling_params(llm, args, max_tokens=None), args.system)
        if is_terminal:
            print(HELP, file=sys.stderr)
        for line in _typed_lines() if is_terminal else map(str.strip, sys.stdin):
            name, _, rest = line.partition(" ")
            if name == "/exit":
                break
            if name.startswith("/"):
                print(chat.command(name, rest.strip()), file=sys.stderr)
            elif line:
                try:
                    chat.say(line)
                except ValueError as error:  # of this message; the conversation goes on without it
                    print(f"error: {error}", file=sys.stderr)
                    has_failed = True
    return 1 if has_failed and not is_terminal else 0


class Chat:
    """A conversation: what was said so far, and the model that answers.

    Raises:
        ValueError: the model has no chat template.
    """

    def __init__(self, llm: "LLM", params: "SamplingParams", system: str = "") -> None:
        self.llm = llm
        self.params = params
        self.system = system
        self.turns: list[dict[str, str]] = []
        self._render("Hello")  # a model that cannot chat says so before anyone types

    def command(self, name: str, text: str) -> str:
        """Do what the user typed with a slash; returns what to say about it."""
        if name == "/reset":
            self.turns.clear()
            return "a new conversation"
        if name == "/system":
            self.system = text
            return "system message set" if text else "no system message"
        if name == "/help":
            return HELP
        return f"{name} is unknown" + (did_you_mean(name, COMMANDS) or ", /help lists what there is")

    def say(self, message: str) -> None:
        """Add a message to the conversation and print the answer as it comes, and its speed to standard error.

        Raises:
            ValueError: the conversation no longer fits; it is left as it was.
        """
        start, text = time.monotonic(), ""
        output = None
        with _catch_interrupt() as is_interrupted:
            for output in stream(
                self.llm, self._render(message), self.params, add_special_tokens=False, is_cancelled=is_interrupted
            ):
                print(output.outputs[0].text[len(text) :], end="", flush=True)
                text = output.outputs[0].text
        print(flush=True)
        if output is None:  # stopped before it began
            return
        why = failure(output)
        if why is not None:
            raise ValueError(why)
        self.turns += [{"role": "user", "content": message}, {"role": "assistant", "content": text}]
        num_tokens, seconds = len(output.outputs[0].token_ids), time.monotonic() - start
        assert output.metrics is not None
        print(
            f"[{num_tokens} tokens, {num_tokens / seconds:.1f} tokens/s, "
            f"the first after {output.metrics.time_to_first_token:.2f} s]",
            file=sys.stderr,
        )

    def _render(self, message: str) -> str:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": message}]
        return self.llm.get_tokenizer().apply_chat_template(messages, chat_template=self.llm.chat_template)


def _typed_lines() -> Iterator[str]:
    """What the user types, with editing and history where Python has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is imported
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print("\n/exit or Ctrl-D leaves", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


@contextlib.contextmanager
def _catch_interrupt() -> Iterator[Callable[[], bool]]:
    """While it lasts the first Ctrl-C only sets what the given function tells; the next one interrupts as ever.

    So an answer ends between two steps of the engine.
    """
    caught = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal caught
        if caught:
            raise KeyboardInterrupt
        caught = True

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: caught
    finally:
        signal.signal(signal.SIGINT, before)
