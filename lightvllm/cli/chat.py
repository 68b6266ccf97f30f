"""`lightvllm chat`: a conversation in the terminal."""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator

from lightvllm.cli.flags import add_engine_flags, add_sampling_flags
from lightvllm.cli.model import open_llm, sampling_params
from lightvllm.cli.parser import Parser, add_verb, did_you_mean
from lightvllm.cli.partner import LocalPartner, Message, Partner, Piece, RemotePartner, Stopped, server_options

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

Standard input may be a pipe: each line is a message, and the answers are all that goes to standard output.

  lightvllm chat
  lightvllm chat --url http://127.0.0.1:8000"""
DIM, UNDIM = "\033[2m", "\033[22m"


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "chat", run, "talk with a model", DESCRIPTION)
    parser.add_argument("--system", metavar="TEXT", default="", help="the system message")
    parser.add_argument("--url", metavar="URL", help="talk with this server's model; --model chooses among several")
    parser.add_argument("--api-key", metavar="TEXT", help="the server's key, with --url")
    add_engine_flags(parser, skip={"skip_tokenizer_init"})
    add_sampling_flags(parser, skip={"n", "logprobs", "prompt_logprobs", "detokenize"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    is_terminal = sys.stdin.isatty()
    has_failed = False
    with _partner(args) as partner:
        chat = Chat(partner, args.system)
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


@contextlib.contextmanager
def _partner(args: argparse.Namespace) -> Iterator[Partner]:
    if args.url is None:
        if args.api_key is not None:
            raise ValueError("api_key: only a server asks for one, and none is named with --url")
        with open_llm(args) as llm:
            yield LocalPartner(llm, sampling_params(llm, args, max_tokens=None))
        return
    from lightvllm.client import Client

    options = server_options(args)
    with Client(args.url, args.api_key) as client:
        yield RemotePartner(client, options)


class Chat:
    """A conversation: what was said so far, and who answers."""

    def __init__(self, partner: Partner, system: str = "") -> None:
        self.partner = partner
        self.system = system
        self.turns: list[Message] = []

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
            ValueError: there is no answer, as when the conversation no longer fits; it is left as it was.
        """
        start, first_seconds, num_tokens, text = time.monotonic(), None, 0, ""
        printer = _Printer()
        try:
            with contextlib.suppress(Stopped), contextlib.closing(self.partner.answer(self._with(message))) as pieces:
                for piece in pieces:
                    if first_seconds is None:
                        first_seconds = time.monotonic() - start
                    num_tokens = piece.num_tokens
                    if not piece.is_reasoning:
                        text += piece.text
                    printer.show(piece)
        except (ValueError, KeyboardInterrupt):
            if first_seconds is not None:
                printer.end()
            raise
        printer.end()
        if first_seconds is None:  # stopped before it began
            return
        self.turns += [{"role": "user", "content": message}, {"role": "assistant", "content": text}]
        speed = num_tokens / (time.monotonic() - start)
        print(
            f"[{num_tokens} tokens, {speed:.1f} tokens/s, the first after {first_seconds:.2f} s]",
            file=sys.stderr,
        )

    def _with(self, message: str) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns, {"role": "user", "content": message}]


class _Printer:
    """Prints the pieces of one answer; what the model thinks only on a terminal, dimmed."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.is_dimmed = False

    def show(self, piece: Piece) -> None:
        if piece.is_reasoning and not self.is_terminal:
            return
        if piece.is_reasoning != self.is_dimmed and piece.text:
            print(DIM if piece.is_reasoning else f"{UNDIM}\n", end="")
            self.is_dimmed = piece.is_reasoning
        print(piece.text, end="", flush=True)

    def end(self) -> None:
        print(UNDIM if self.is_dimmed else "", flush=True)


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
