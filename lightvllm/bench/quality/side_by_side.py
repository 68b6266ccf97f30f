"""All variants of a model, one after the other, each in a process of its own. Imports no torch."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

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
    job_file, result_file = work / "job.json", work / "result.json"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, "-m", "lightvllm.bench.quality.measure", str(job_file), str(result_file)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Outcome(variant, disk_bytes, None, words[-1])
    return Outcome(variant, disk_bytes, json.loads(result_file.read_text(encoding="utf-8")))
