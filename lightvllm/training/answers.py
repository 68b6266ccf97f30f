"""Questions with their answers as token ids: what the default model is calibrated with, and measured on."""

from pathlib import Path

from tokenizers import Tokenizer

from lightvllm.training.dataset import pack
from lightvllm.training.generator import Sample, make_sample


def answered_questions(
    model: Path, split: str, seed: int, num_samples: int, num_pairs: int
) -> list[tuple[list[int], int]]:
    """(token ids, where the answer begins) of every question about the split's first `num_samples` databases.

    Args:
        model: the folder with the tokenizer.
    """
    questions = []
    for index in range(num_samples):
        sample = make_sample(split, seed, index, num_pairs)
        sample.connection.close()
        questions += tokenized(model, sample)
    return questions


def tokenized(model: Path, sample: Sample) -> list[tuple[list[int], int]]:
    """(token ids, where the answer begins) of every question of a sample that fits a training sequence."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    packed = [pack(tokenizer, sample.schema, [(pair.question, pair.sql)]) for pair in sample.pairs]
    return [(tokens, targets.index(True)) for tokens, _, targets in packed if any(targets)]
