"""All variants of a model, one after the other, each in a process of its own. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightvllm.bench.job import run_job
from lightvllm.bench.quality.windows import Window
from lightvllm.hub import resolve_model

MOST_LOGIT_BYTES = 2**30  # of the reference's logits, which the variants are compared with


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        options: of `LLM`, the model among them.
    """

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a variant.

    Attributes:
        disk_bytes: the size of the weights' files.
        result: the fields of `measure.Result`; None if it failed.
        failure: why, in words.
    """

    variant: Variant
    disk_bytes: int
    result: dict[str, Any] | None
    failure: str | None = None


def measure_all(
    variants: Sequence[Variant],
    windows: Sequence[Window],
    chats: Sequence[list[dict[str, str]]],
    vocab_size: int,
    work: Path,
    show_progress: bool = False,
) -> list[Outcome]:
    """Measure each variant; the first is what the others are compared with.

    Args:
        work: folder for what passes between the processes: a GiB at most.

    Raises:
        ValueError: the first one fails.
    """
    num_counted = sum(window.num_counted for window in windows)
    every = max(1, -(-num_counted * vocab_size * 4 // MOST_LOGIT_BYTES))
    outcomes: list[Outcome] = []
    for variant in tqdm(variants, desc="Variants", disable=not show_progress):
        job = {
            "options": variant.options,
            "windows": [(window.token_ids, window.first_counted) for window in windows],
            "chats": list(chats),
            "logits_file": str(work / "reference.logits"),
            "is_reference": not outcomes,
            "every": every,
        }
        outcomes.append(_measure(variant, job, work))
        if outcomes[0].failure:
            raise ValueError(f"{variant.name}: {outcomes[0].failure}")
    return outcomes


def _measure(variant: Variant, job: dict[str, Any], work: Path) -> Outcome:
    disk_bytes = sum(file.stat().st_size for file in resolve_model(variant.options["model"]).glob("*.safetensors"))
    try:
        return Outcome(variant, disk_bytes, run_job("lightvllm.bench.quality.measure", job, work))
    except ValueError as error:
        return Outcome(variant, disk_bytes, None, str(error))
