"""Token files for training: one database and its questions packed into one sequence.

A packed sequence is a schema followed by several question/answer branches. Each branch sees the schema and itself, and
its positions count on from the schema's end, so training on it equals training on every question alone, with the schema
computed once.
"""

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lightvllm.training.generator import make_sample
from lightvllm.training.tokenizer import END, render_question, render_system

MAX_SEQUENCE = 1024
_FILES = ("tokens", "segments", "targets", "offsets")


@dataclass
class PackedDataset:
    """Sequences end to end, memory-mapped.

    Attributes:
        tokens: [num_tokens] uint16
        segments: [num_tokens] uint8; 0 is the schema, 1 and up are the branches.
        targets: [num_tokens] bool; the tokens of an answer, which the loss counts.
        offsets: [num_sequences + 1] int64; where each sequence begins.
    """

    tokens: np.ndarray
    segments: np.ndarray
    targets: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def open(cls, folder: Path) -> "PackedDataset":
        """The dataset `write_dataset` left in the folder. Raises ValueError where there is none."""
        missing = [name for name in _FILES if not (folder / f"{name}.npy").is_file()]
        if missing:
            raise ValueError(f"data: {folder} lacks {missing[0]}.npy; make it with `python -m lightvllm.training data`")
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FILES))

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, segments, targets) of one sequence, each [length]."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.segments[span], self.targets[span]


def pack(tokenizer: Tokenizer, schema: str, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int], list[bool]]:
    """(tokens, segments, targets) of one schema with its (question, SQL) pairs, as many as fit `MAX_SEQUENCE`."""
    tokens = tokenizer.encode(render_system(schema)).ids
    segments, targets = [0] * len(tokens), [False] * len(tokens)
    for number, (question, sql) in enumerate(pairs, start=1):
        prompt = tokenizer.encode(render_question(question)).ids
        answer = tokenizer.encode(sql + END).ids
        if len(tokens) + len(prompt) + len(answer) > MAX_SEQUENCE:
            break
        tokens += prompt + answer
        segments += [number] * (len(prompt) + len(answer))
        targets += [False] * len(prompt) + [True] * len(answer)
    return tokens, segments, targets


def texts(split: str, seed: int, num_samples: int, num_pairs: int) -> Iterator[str]:
    """Schemas, questions and SQL of a split, for the tokenizer's training."""
    for index in range(num_samples):
        sample = make_sample(split, seed, index, num_pairs)
        sample.connection.close()
        yield sample.schema
        for pair in sample.pairs:
            yield pair.question
            yield pair.sql


def _packed_sample(
    index: int, tokenizer_file: str, split: str, seed: int, num_pairs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sample = make_sample(split, seed, index, num_pairs)
    sample.connection.close()
    tokens, segments, targets = pack(
        _tokenizer(tokenizer_file), sample.schema, [(p.question, p.sql) for p in sample.pairs]
    )
    return np.array(tokens, np.uint16), np.array(segments, np.uint8), np.array(targets, np.bool_)


def _tokenizer(file: str, cache: dict[str, Tokenizer] = {}) -> Tokenizer:  # noqa: B006 (one a worker process)
    if file not in cache:
        cache[file] = Tokenizer.from_file(file)
    return cache[file]


def write_dataset(
    folder: Path, tokenizer_file: Path, split: str, seed: int, num_samples: int, num_pairs: int, processes: int
) -> PackedDataset:
    """Generates a split, packs it and writes it as `.npy` files; the same whatever the number of processes."""
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(
        _packed_sample, tokenizer_file=str(tokenizer_file), split=split, seed=seed, num_pairs=num_pairs
    )  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        sequences = [s for s in pool.imap(make, range(num_samples), chunksize=64) if s[2].any()]
    lengths = [len(tokens) for tokens, _, _ in sequences]
    arrays = [np.concatenate([sequence[part] for sequence in sequences]) for part in range(3)]
    arrays.append(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    for name, array in zip(_FILES, arrays, strict=True):
        np.save(folder / f"{name}.npy", array)
    return PackedDataset.open(folder)
