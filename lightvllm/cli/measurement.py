"""What the measurements of `lightvllm bench` share: their number flags, and how they print what they found."""

import argparse
import json
from pathlib import Path
from typing import Any

from lightvllm.cli.parser import Parser


def add_number(parser: argparse._ActionsContainer, flag: str, default: int, text: str, dest: str | None = None) -> None:
    """Add a flag for an integer."""
    dest = dest or flag.removeprefix("--").replace("-", "_")
    parser.add_argument(flag, dest=dest, type=int, metavar="N", default=default, help=f"{text} (default: {default})")


def add_json_flag(parser: Parser) -> None:
    """Add the flag that `print_measurement` reads."""
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE beside the table"
    )


def check_plot(path: Path) -> None:
    """Raise a ValueError unless a picture can be drawn and written there: before hours of measurements, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot: matplotlib is not installed; pip install 'lightvllm[train]'") from None
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot: {str(path)!r} is no .png, .svg or .pdf file")
    if not path.parent.is_dir():
        raise ValueError(f"--plot: there is no folder {str(path.parent)!r}")


def print_measurement(args: argparse.Namespace, record: dict[str, Any], setting: str, text: str) -> None:
    """Print the table, or JSON instead, or write JSON to a file beside it."""
    record = {"benchmark": args.verb} | record
    if args.json == "-":
        print(json.dumps(record, indent=2))
        return
    print(f"{setting}\n{text}")
    if args.json:
        write_json(args.json, record, "--json")


def write_json(path: str, record: dict[str, Any], flag: str) -> None:
    """Write a file.

    Raises:
        ValueError: that cannot be, by the flag's name.
    """
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"{flag}: cannot write {path!r}: {error}") from None
