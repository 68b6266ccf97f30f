"""`lightvllm quantize`: a smaller copy of a checkpoint, in a format that other engines read, too."""

import argparse
import sys
from pathlib import Path

from lightvllm.cli.measurement import add_number
from lightvllm.cli.parser import Parser, add_verb
from lightvllm.config import DEFAULT_MODEL
from lightvllm.quantization.calibrate.schemes import GROUP_SIZES, SCHEMES

DESCRIPTION = (
    """
MODEL is a checkpoint folder or hub name, or "default" for the model that comes with LightvLLM. OUT is written as
compressed-tensors, which vLLM and transformers load, with a report of what rounding did to each layer. Schemes:

"""
    + "\n".join(f"  {name:12} {scheme.summary}" for name, scheme in SCHEMES.items())
    + """

All but the head, the embedding and the norms is rounded. w8a8, w4-gptq and w4-awq look at what the layers compute for
a text (--calibration), which should be like what the model is used for; the default model has its training questions.

  lightvllm quantize path/to/checkpoint path/to/smaller --scheme w4-gptq --calibration text.txt
  lightvllm quantize default smaller --scheme w8a8"""
)
# Of the default model's training questions; those that it was trained on are other ones.
SPLIT, SEED, PAIRS = "dev", 1, 2


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "quantize", run, "round weights", DESCRIPTION, arguments="MODEL OUT --scheme NAME")
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, hub name, or default")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    parser.add_argument("--scheme", required=True, choices=list(SCHEMES), help="how")
    parser.add_argument(
        "--group-size",
        type=int,
        default=128,
        metavar="N",
        help=f"inputs that share a scale, of 4 bits: {', '.join(map(str, GROUP_SIZES))} (default: 128)",
    )
    parser.add_argument("--calibration", metavar="FILE", help="text to calibrate with")
    add_number(parser, "--samples", 128, "stretches of it to take")
    add_number(parser, "--length", 512, "most tokens in each")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    from lightvllm.hub import resolve_model
    from lightvllm.quantization.calibrate.report import report_text
    from lightvllm.quantization.calibrate.walk import REPORT_FILE, quantize_checkpoint

    model = DEFAULT_MODEL if args.model == "default" else resolve_model(args.model)
    report = quantize_checkpoint(
        model,
        args.out,
        args.scheme,
        group_size=args.group_size,
        sequences=calibration(model, args.scheme, args.calibration, args.samples, args.length),
        overwrite=args.overwrite,
        show_progress=sys.stderr.isatty(),
    )
    print(f"{report_text(report)}\n{args.out} is written, with {REPORT_FILE}")
    return 0


def calibration(model: Path, scheme: str, file: str | None, samples: int, length: int) -> list[list[int]]:
    """What to calibrate with: the file, else for the default model questions such as it was trained on.

    Raises:
        ValueError: the file cannot be read, or the scheme needs one.
    """
    from lightvllm.engine.tokenizer import Tokenizer
    from lightvllm.quantization.calibrate.data import check_amount, text_sequences

    check_amount(samples, length)
    if file is not None:
        return text_sequences(read_text(file, "calibration"), Tokenizer.from_pretrained(model), samples, length)
    if model.resolve() == DEFAULT_MODEL.resolve():
        from lightvllm.training.answers import answered_questions

        questions = answered_questions(model, SPLIT, SEED, -(-samples // PAIRS), PAIRS)
        return [token_ids[:length] for token_ids, _ in questions[:samples]]
    if SCHEMES[scheme].needs_data:
        raise ValueError(f"calibration: the scheme {scheme} looks at what the layers compute; give a text file")
    return []


def read_text(file: str, flag: str) -> str:
    """A text file.

    Raises:
        ValueError: it cannot be read, by the flag's name.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{flag}: cannot read {file!r}: {error}") from None
