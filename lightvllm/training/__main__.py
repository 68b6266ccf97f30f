"""`python -m lightvllm.training`: from nothing to the default model's folder, or one step of the way.

The steps, in order: `tokenizer`, `data`, `train`, `export`, `evaluate`. `all` takes them one after the other; each
skips what its run folder has already, and `train` goes on from the last checkpoint. The recipe `default` wants an
accelerator, `small` does with a processor. Under `torchrun` use `train` alone:
torchrun --nproc-per-node 2 -m lightvllm.training train
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lightvllm.training.recipe import MAX_POSITIONS, RECIPES, Recipe

STAGES = ("tokenizer", "data", "train", "export", "evaluate")


def default_model_folder() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(resources.files("lightvllm"))) / "default_model"


def make_tokenizer(recipe: Recipe, run: Path) -> None:
    """Trains the tokenizer on the training split's texts."""
    from lightvllm.training.dataset import texts
    from lightvllm.training.tokenizer import save_tokenizer, train_tokenizer

    if (run / "tokenizer" / "tokenizer.json").is_file():
        return
    corpus = texts("train", recipe.seed, recipe.tokenizer_samples, recipe.pairs)
    save_tokenizer(train_tokenizer(corpus, recipe.model.vocab_size), run / "tokenizer", MAX_POSITIONS)


def make_data(recipe: Recipe, run: Path, processes: int) -> None:
    """Generates and packs the training and dev splits."""
    from lightvllm.training.dataset import write_dataset

    tokenizer_file = run / "tokenizer" / "tokenizer.json"
    for split, num_samples in (("dev", recipe.dev_samples), ("train", recipe.train_samples)):
        if not (run / split / "offsets.npy").is_file():
            write_dataset(run / split, tokenizer_file, split, recipe.seed, num_samples, recipe.pairs, processes)


def train(recipe: Recipe, run: Path) -> None:
    """Trains, or goes on training, and draws the loss."""
    import torch

    from lightvllm.training.dataset import PackedDataset
    from lightvllm.training.trainer import Trainer, exact_answers, plot_loss

    if recipe.accelerator and not torch.cuda.is_available():
        raise ValueError(
            "recipe: this one wants an accelerator, and there is none; --recipe small does with a processor"
        )
    dev = PackedDataset.open(run / "dev")

    def report(trainer: Trainer) -> None:
        plot_loss(trainer.log, trainer.folder / "loss.png")
        print(
            f"\nstep {trainer.step}: {exact_answers(trainer.model, dev):.1%} of the dev answers exact", file=sys.stderr
        )

    trainer = Trainer(recipe.model, recipe.train, PackedDataset.open(run / "train"), run / "run")
    trainer.resume()
    trainer.run(on_checkpoint=report)
    trainer.close()


def export_model(recipe: Recipe, run: Path, folder: Path) -> None:
    """Writes the Hugging Face folder of the run's last checkpoint."""
    from lightvllm.training.export import export
    from lightvllm.training.trainer import load_checkpoint

    export(load_checkpoint(run / "run", recipe.model), run / "tokenizer", folder)


def evaluate_model(recipe: Recipe, run: Path, folder: Path) -> None:
    """Measures execution accuracy through the engine, prints it and writes it into the model card."""
    from lightvllm import LLM, SamplingParams
    from lightvllm.training.card import write_card
    from lightvllm.training.evaluate import accuracy_table, evaluate, write_report

    outcomes = []
    with LLM(str(folder)) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=200)

        def generate(chats: Sequence[list[dict[str, str]]]) -> list[str]:
            return [output.outputs[0].text for output in llm.chat(list(chats), params)]

        for split in ("unseen_domains", "unseen_phrasings", "validation_domains", "large_schemas"):
            outcomes += evaluate(generate, split, recipe.seed, recipe.test_samples, recipe.pairs)
    run.mkdir(parents=True, exist_ok=True)
    write_report(outcomes, run / "evaluation.json")
    write_card(folder, recipe, outcomes)
    print(accuracy_table(outcomes))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m lightvllm.training", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("stage", nargs="?", default="all", choices=("all", *STAGES))
    parser.add_argument("--recipe", default="default", choices=tuple(RECIPES))
    parser.add_argument("--run", type=Path, help="where data and checkpoints are kept (default: runs/RECIPE)")
    parser.add_argument("--out", type=Path, help="the Hugging Face folder to write (default: the one that ships with "
                        "the package for the recipe default, RUN/model for others)")  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="processes that generate data")
    options = parser.parse_args(arguments)
    options.run = options.run or Path("runs") / options.recipe
    options.out = options.out or (default_model_folder() if options.recipe == "default" else options.run / "model")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the stages asked for."""
    options = parse(arguments)
    recipe = RECIPES[options.recipe]
    stages = {
        "tokenizer": lambda: make_tokenizer(recipe, options.run),
        "data": lambda: make_data(recipe, options.run, options.processes),
        "train": lambda: train(recipe, options.run),
        "export": lambda: export_model(recipe, options.run, options.out),
        "evaluate": lambda: evaluate_model(recipe, options.run, options.out),
    }
    for stage in STAGES if options.stage == "all" else (options.stage,):
        print(f"[{stage}]", file=sys.stderr)
        stages[stage]()


if __name__ == "__main__":
    main()
