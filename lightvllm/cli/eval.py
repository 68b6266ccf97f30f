"""`lightvllm eval`: a model in full precision and quantized, side by side."""

import argparse
import dataclasses
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightvllm.cli.flags import add_engine_flags, given
from lightvllm.cli.measurement import add_json_flag, add_number, check_plot, print_measurement
from lightvllm.cli.parser import add_verb, did_you_mean
from lightvllm.cli.quantize import calibration, read_text
from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.quantization.calibrate.schemes import SCHEMES

if TYPE_CHECKING:
    from lightvllm.bench.quality.side_by_side import Outcome, Variant
    from lightvllm.bench.quality.windows import Window
    from lightvllm.training.generator import Sample

DESCRIPTION = """
The first MODEL, by default the one that comes with LightvLLM, is what all others are compared with: the same rounded
while loading, by the schemes of `lightvllm quantize`, and the folders named after it. Each runs in its own process.

Perplexity is over --text, in windows of --length tokens: each token is predicted from all those before it in its
window, of which there are at least --length less --stride. The text's first token is not counted, as nothing precedes
it. Without --text the default model answers questions about databases it never saw: their SQL is what is counted, and
what it writes itself is run and compared with it. With --own-text the first model draws what is predicted.

  lightvllm eval --schemes all --plot quality.png
  lightvllm eval path/to/checkpoint path/to/smaller --text text.txt
  lightvllm eval path/to/checkpoint --own-text --limit 2000"""
# What needs no folder: its name in the table, and the engine's options.
ON_THE_FLY = {
    "int8": ("int8, while loading", {"quantization": "int8"}),
    "w4": ("w4, while loading", {"quantization": "w4"}),
    "kv-int8": ("KV cache in int8", {"kv_cache_dtype": "int8"}),
}
# The questions of the model card's first column: its seed and split.
SPLIT, SEED, PAIRS = "unseen_domains", 20, 5
LENGTH = 512


def add_parser(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb to the command line."""
    summary = "measure what quantization costs: size, speed, perplexity, accuracy"
    parser = add_verb(verbs, "eval", run, summary, DESCRIPTION, arguments="[MODEL ...]")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="checkpoint folders, the first in full precision")
    what = parser.add_argument_group("what is predicted")
    what.add_argument("--text", metavar="FILE", help="text for the perplexity")
    what.add_argument("--own-text", action="store_true", help="predict what the first model writes at temperature 1")
    what.add_argument("--length", type=int, metavar="N", help=f"tokens of a window (default: {LENGTH})")
    what.add_argument("--stride", type=int, metavar="N", help="tokens from one to the next (default: half its length)")
    add_number(what, "--limit", 20_000, "most tokens to predict")
    add_number(what, "--questions", 200, "questions to ask the default model")
    which = parser.add_argument_group("variants")
    which.add_argument(
        "--on-the-fly",
        default=",".join(ON_THE_FLY),
        metavar="NAME,...",
        help="rounded while loading or running, or none (default: int8,w4,kv-int8)",
    )
    which.add_argument("--schemes", default="", metavar="NAME,...", help="quantize by these, or all, and measure that")
    which.add_argument("--calibration", metavar="FILE", help="text for the schemes that need one")
    which.add_argument("--work", metavar="FOLDER", type=Path, help="keep what was quantized there, for the next time")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures: .png, .svg or .pdf")
    add_json_flag(parser)
    add_engine_flags(parser, skip={"model", "quantization", "tokenizer", "skip_tokenizer_init", "revision", "hf_token"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    from lightvllm.bench.machine import describe_machine
    from lightvllm.bench.quality import plot, report
    from lightvllm.bench.quality.side_by_side import measure_all
    from lightvllm.hub import resolve_model
    from lightvllm.model_config import ModelConfig

    if args.plot:
        check_plot(args.plot)
    model = resolve_model(args.models[0]) if args.models else DEFAULT_MODEL
    vocab_size = ModelConfig.from_pretrained(model).vocab_size
    samples = _questions(args, model)
    windows = _windows(args, model, vocab_size, samples)
    with tempfile.TemporaryDirectory() as folder:
        variants = _variants(args, model, args.work or Path(folder))
        chats = _chats(samples)
        outcomes = measure_all(variants, windows, chats, vocab_size, Path(folder), sys.stderr.isatty())
    rows = [report.row_of(outcome, _accuracy(samples, outcome)) for outcome in outcomes]
    record = {
        "model": str(model),
        "num_tokens": outcomes[0].result["num_tokens"] if outcomes[0].result else 0,
        "num_questions": len(chats),
        "variants": [dataclasses.asdict(row) for row in rows],
        "machine": describe_machine(),
    }
    setting = f"{model}: {record['num_tokens']:,} tokens predicted, {len(chats)} questions\n"
    print_measurement(args, record, setting, report.table(rows))
    if args.plot:
        plot.draw(rows, args.plot)
    return 1 if any(row.failure for row in rows) else 0


def _questions(args: argparse.Namespace, model: Path) -> list["Sample"]:
    """Databases with questions, for the default model."""
    if model.resolve() != DEFAULT_MODEL.resolve():
        return []
    from lightvllm.training.generator import make_sample

    if args.questions < 1:
        raise ValueError(f"questions: {args.questions} is out of range, expected at least 1")
    return [make_sample(SPLIT, SEED, index, PAIRS) for index in range(-(-args.questions // PAIRS))]


def _windows(args: argparse.Namespace, model: Path, vocab_size: int, samples: list["Sample"]) -> list["Window"]:
    from lightvllm.bench.quality.windows import Window, limited, text_windows
    from lightvllm.engine.tokenizer import Tokenizer

    if args.text and args.own_text:
        raise ValueError("text: given together with own_text, expected one of these")
    if args.limit < 1:
        raise ValueError(f"limit: {args.limit} is out of range, expected at least 1")
    if args.stride is not None and not args.text:
        raise ValueError("stride: only with text")
    if args.length is not None and not (args.text or args.own_text):
        raise ValueError("length: only with text or own_text")
    length = LENGTH if args.length is None else args.length
    if args.text:
        token_ids = Tokenizer.from_pretrained(model).encode(read_text(args.text, "text"))
    elif args.own_text:
        return _own_text(args, model, vocab_size, length)
    elif samples:
        from lightvllm.training.answers import tokenized

        return limited([Window(*question) for sample in samples for question in tokenized(model, sample)], args.limit)
    else:
        raise ValueError("text: the perplexity is over a text; give a file, or own_text")
    stride = max(1, length // 2) if args.stride is None else args.stride
    return limited(list(text_windows(token_ids, length, stride)), args.limit)


def _own_text(args: argparse.Namespace, model: Path, vocab_size: int, length: int) -> list["Window"]:
    """Windows that the model drew itself, each after a random first token.

    On its own text no other model can be expected to do better; on others', an overconfident one gains by noise.
    """
    from lightvllm.bench.quality.windows import Window, limited
    from lightvllm.llm import LLM
    from lightvllm.sampling_params import SamplingParams

    if length < 2:
        raise ValueError(f"length: {length} is out of range, expected at least 2")
    draw = random.Random(0)
    prompts = [[draw.randrange(vocab_size)] for _ in range(-(-args.limit // (length - 1)))]
    params = [
        SamplingParams(temperature=1, max_tokens=length - 1, ignore_eos=True, detokenize=False, seed=seed)
        for seed in range(len(prompts))
    ]
    options = given(args, EngineConfig) | {"model": str(model), "skip_tokenizer_init": True}
    with LLM(**options) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=sys.stderr.isatty())
    windows = [
        Window([*prompt, *output.outputs[0].token_ids], 1) for prompt, output in zip(prompts, outputs, strict=True)
    ]
    return limited(windows, args.limit)


def _variants(args: argparse.Namespace, model: Path, work: Path) -> list["Variant"]:
    """The model itself, rounded while loading, quantized by the schemes asked for, and the folders that were named."""
    from lightvllm.bench.quality.side_by_side import Variant
    from lightvllm.hub import resolve_model

    options = given(args, EngineConfig)
    on_the_fly = _names(args.on_the_fly, tuple(ON_THE_FLY), "on_the_fly")
    schemes = _names(args.schemes, tuple(SCHEMES), "schemes")
    folders = [resolve_model(folder) for folder in args.models[1:]]
    variants = [Variant("full precision", options | {"model": str(model)})]
    variants += [Variant(label, variants[0].options | more) for label, more in map(ON_THE_FLY.__getitem__, on_the_fly)]
    made = [(scheme, _quantized(args, model, scheme, work)) for scheme in schemes]
    made += [(folder.name, folder) for folder in folders]
    return variants + [Variant(name, options | {"model": str(folder)}) for name, folder in made]


def _names(text: str, known: tuple[str, ...], flag: str) -> list[str]:
    names = list(known) if text == "all" else [name for name in text.split(",") if name and text != "none"]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f", expected some of {', '.join(known)}"
            raise ValueError(f"{flag}: {name!r} is unknown{hint}")
    return names


def _quantized(args: argparse.Namespace, model: Path, scheme: str, work: Path) -> Path:
    """The folder of the model quantized by a scheme, which is made unless it is there."""
    from lightvllm.quantization.calibrate.walk import quantize_checkpoint

    folder = work / f"{model.name}-{scheme}"
    if not folder.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        sequences = calibration(model, scheme, args.calibration, samples=128, length=512)
        quantize_checkpoint(model, folder, scheme, sequences=sequences, show_progress=sys.stderr.isatty())
    return folder


def _chats(samples: list["Sample"]) -> list[list[dict[str, str]]]:
    if not samples:
        return []
    from lightvllm.training.evaluate import chats_of

    return chats_of(samples)


def _accuracy(samples: list["Sample"], outcome: "Outcome") -> float | None:
    if not samples or outcome.result is None:
        return None
    from lightvllm.training.evaluate import judge

    judged = judge(SPLIT, samples, outcome.result["texts"])
    return sum(one.correct for one in judged) / len(judged)
