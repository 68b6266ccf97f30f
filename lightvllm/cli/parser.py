"""argparse with short errors: what is wrong and the nearest name that would be right, without a page of usage."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """The parser of the program and of each verb. Flags must be written out, so that new ones break no old script."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse; nothing may be left over. Each parser answers for its own flags, of which it knows the names."""
        args = sys.argv[1:] if args is None else list(args)
        self._refuse_unknown_flags(args)
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}")
        return namespace, unknown

    def _refuse_unknown_flags(self, args: Sequence[str]) -> None:
        """Before argparse looks: it would first complain of a required flag, which may be the misspelt one."""
        for arg in args:
            if arg == "--" or (self._subparsers is not None and not arg.startswith("-")):
                return
            flag = arg.partition("=")[0]
            # What has a space in it is a text that begins with dashes: argparse takes it as one, too.
            if arg.startswith("--") and " " not in arg and flag not in self._option_string_actions:
                self.error(f"unknown flag {flag}{did_you_mean(flag, self._option_string_actions)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), action.choices) or f", expected one of {', '.join(action.choices)}"
            raise argparse.ArgumentError(action, f"{value!r} is unknown{hint}")


def add_verb(
    verbs: "argparse._SubParsersAction[Parser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    description: str = "",
    arguments: str = "",
) -> Parser:
    """Add a verb, which `run` executes and returns the exit code of, with the flags that every verb has.

    Args:
        summary: one line, for the list of verbs.
        description: what the verb's own help says after it; examples, laid out as written.
        arguments: the usage line's, without the flags: these are too many for one.
    """
    parser = verbs.add_parser(
        name,
        help=summary,
        usage=" ".join(["%(prog)s", *filter(None, [arguments]), "[flags]"]),
        description=f"{summary[0].upper()}{summary[1:]}.\n{description}",
    )
    parser.add_argument("--debug", action="store_true", help="show log messages, and the traceback of an error")
    parser.set_defaults(run=run, verb=name, log_level="INFO")
    return parser


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the known word nearest to this one; empty if none is near."""
    import difflib

    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {nearest[0]}?" if nearest else ""
