"""Write a checkpoint of any Qwen3 shape with random weights, by default that of Qwen3-0.6B: speed needs no training.

    python benchmarks/make_checkpoint.py /tmp/qwen3-0.6b
    lightvllm bench throughput --model /tmp/qwen3-0.6b --against transformers

There is no tokenizer in it: benchmarks use token ids.
"""

import argparse
from dataclasses import fields
from pathlib import Path

from lightvllm.bench.random_checkpoint import Shape, write_checkpoint

CHOICES = {"dtype": ("bfloat16", "float16", "float32")}
HELP = {"heads": "query heads", "tied": "the head is the embedding"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write it")
    for field in fields(Shape):
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": field.type}
        flag, text = "--" + field.name.replace("_", "-"), HELP.get(field.name, field.name.replace("_", " "))
        parser.add_argument(flag, default=field.default, choices=CHOICES.get(field.name), help=text, **kind)
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--device", default="cpu", help="where they are drawn: a GPU takes a moment, a CPU minutes")
    return parser.parse_args()


def shape_of(args: argparse.Namespace) -> Shape:
    return Shape(**{field.name: getattr(args, field.name) for field in fields(Shape)})


def main() -> None:
    args = parse_args()
    shape = shape_of(args)
    count = write_checkpoint(args.folder, shape, args.seed, args.device)
    print(f"{args.folder}: {count / 1e6:.0f} M parameters in {shape.dtype}")


if __name__ == "__main__":
    main()
