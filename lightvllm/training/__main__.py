"""`python -m lightvllm.training`: from nothing to the default model's folder, or one step of the way.

The steps, in order: `tokenizer`, `data`, `train`, `export`, `evaluate`. `all` takes them one after the other; each
skips what its run folder has already, and `train` goes on from the last checkpoint. Under `torchrun` use `train` alone:
torchrun --nproc-per-node 2 -m lightvllm.training train
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lightvllm.training import recipe

STAGES = ("tokenizer", "data", "train", "export", "evaluate")


def default_model_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(resources.files("lightvllm"))) / "default_model"


def make_tokenizer(run: Path) -> None:
    """Trains the tokenizer on the training split's texts."""
    from lightvllm.training.dataset import texts
    from lightvllm.training.tokenizer import save_tokenizer, train_tokenizer

    if (run / "tokenizer" / "tokenizer.json").is_file():
        return
    corpus = texts("train", recipe.SEED, recipe.TOKENIZER_SAMPLES, recipe.PAIRS_PER_SAMPLE)
    save_tokenizer(train_tokenizer(corpus), run / "tokenizer", recipe.MAX_POSITIONS)


def make_data(run: Path, processes: int) -> None:
    """Generates and packs the training and dev splits."""
    from lightvllm.training.dataset import write_dataset

    tokenizer_file = run / "tokenizer" / "tokenizer.json"
    for split, num_samples in (("dev", recipe.DEV_SAMPLES), ("train", recipe.TRAIN_SAMPLES)):
        if not (run / split / "offsets.npy").is_file():
            write_dataset(
                run / split, tokenizer_file, split, recipe.SEED, num_samples, recipe.PAIRS_PER_SAMPLE, processes
            )


def train(run: Path, steps: int) -> None:
    """Trains, or goes on training, and draws the loss."""
    from lightvllm.training.dataset import PackedDataset
    from lightvllm.training.trainer import Trainer, exact_answers, plot_loss

    dev = PackedDataset.open(run / "dev")

    def report(trainer: Trainer) -> None:
        plot_loss(trainer.log, trainer.folder / "loss.png")
        print(
            f"\nstep {trainer.step}: {exact_answers(trainer.model, dev):.1%} of the dev answers exact", file=sys.stderr
        )

    trainer = Trainer(recipe.model_config(), recipe.train_config(steps), PackedDataset.open(run / "train"), run / "run")
    trainer.resume()
    trainer.run(on_checkpoint=report)
    trainer.close()


def export_model(run: Path, folder: Path) -> None:
    """Writes the Hugging Face folder of the run's last checkpoint."""
    from lightvllm.training.export import export
    from lightvllm.training.trainer import load_checkpoint

    export(load_checkpoint(run / "run", recipe.model_config()), run / "tokenizer", folder)


def evaluate_model(folder: Path, report: Path, num_samples: int, steps: int) -> None:
    """Measures execution accuracy through the engine, prints it and writes it into the model card."""
    from safetensors import safe_open

    from lightvllm import LLM, SamplingParams
    from lightvllm.training.card import write_card
    from lightvllm.training.evaluate import accuracy_table, evaluate, write_report

    outcomes = []
    with LLM(str(folder)) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=160)

        def generate(chats: Sequence[list[dict[str, str]]]) -> list[str]:
            return [output.outputs[0].text for output in llm.chat(list(chats), params)]

        for split in ("unseen_domains", "unseen_phrasings"):
            outcomes += evaluate(generate, split, recipe.SEED, num_samples, recipe.PAIRS_PER_SAMPLE)
    report.parent.mkdir(parents=True, exist_ok=True)
    write_report(outcomes, report)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 (no mapping)
    write_card(folder, outcomes, parameters, steps)
    print(accuracy_table(outcomes))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lightvllm.training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("stage", nargs="?", default="all", choices=("all", *STAGES))
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="where data and checkpoints are kept")
    parser.add_argument("--out", type=Path, default=default_model_folder(), help="the Hugging Face folder to write")
    parser.add_argument("--steps", type=int, default=recipe.STEPS, help="training steps of the whole run")
    parser.add_argument("--processes", type=int, default=2, help="processes that generate data")
    parser.add_argument("--samples", type=int, default=recipe.TEST_SAMPLES, help="test databases for each split")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages asked for."""
    options = parse(arguments)
    stages = {
        "tokenizer": lambda: make_tokenizer(options.run),
        "data": lambda: make_data(options.run, options.processes),
        "train": lambda: train(options.run, options.steps),
        "export": lambda: export_model(options.run, options.out),
        "evaluate": lambda: evaluate_model(
            options.out, options.run / "evaluation.json", options.samples, options.steps
        ),
    }
    for stage in STAGES if options.stage == "all" else (options.stage,):
        print(f"[{stage}]", file=sys.stderr)
        stages[stage]()


if __name__ == "__main__":
    main()
