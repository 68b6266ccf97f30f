"""One variant of a model, measured in a process of its own: `python -m lightvllm.bench.quality.measure JOB RESULT`.

Both are JSON files, `Job` and `Result`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lightvllm.bench.internals import worker_of
from lightvllm.bench.job import serve_job
from lightvllm.bench.serving import compare
from lightvllm.bench.workload import Workload
from lightvllm.layers.linear import Linear
from lightvllm.llm import LLM
from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.model_runner import ROWS_AT_ONCE, ModelRunner

SPEED = Workload(num_requests=8, input_len=128, output_len=32)
REPEATS = 3
MAX_ANSWER_TOKENS = 200


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        options: of `LLM`.
        windows: token ids, and how many of them are context only.
        chats: to answer greedily.
        logits_file: where the reference's logits are, float32 [num_compared, vocab_size]; the reference writes them.
        is_reference: whether this variant is it.
        every: of the counted tokens, one in so many is compared.
    """

    options: dict[str, Any]
    windows: list[tuple[list[int], int]]
    chats: list[list[dict[str, str]]]
    logits_file: str
    is_reference: bool
    every: int


@dataclass(frozen=True)
class Divergence:
    """How far a variant's predictions are from the reference's; means over the tokens compared.

    Attributes:
        perplexity_error: the standard error of the ratio of the perplexities: that of the mean difference of losses.
        top_1: the share of tokens where both find the same one likeliest.
        kl: the Kullback-Leibler divergence of the reference's distribution from the variant's, in nats.
        logit_error, worst_logit_error: the mean and the largest difference of a logit, as a share of the standard
            deviation of the reference's logits of one token (its mean over the tokens).
    """

    num_tokens: int
    perplexity_error: float
    top_1: float
    kl: float
    logit_error: float
    worst_logit_error: float


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        weight_bytes: the model's tensors as they are held for serving.
        peak_bytes: the most memory the process held from its start to the end of a load like `SPEED`.
        output_tokens_per_s: of `SPEED`, the median of `REPEATS` runs.
        num_tokens: those that were predicted.
        perplexity: exp of their mean negative log-likelihood.
        texts: the answers to the chats.
    """

    weight_bytes: int
    peak_bytes: int
    output_tokens_per_s: float
    num_tokens: int
    perplexity: float
    divergence: Divergence | None
    texts: list[str]


def measure(job: Job) -> Result:
    """Open the model and measure it.

    Raises:
        ValueError: it does not open, or a window does not fit.
    """
    longest = max(len(token_ids) for token_ids, _ in job.windows)
    with LLM(**{"max_num_batched_tokens": max(4096, longest), **job.options}) as llm:  # a window is one step
        runner, most = worker_of(llm).runner, worker_of(llm).plan.max_model_len
        if longest > most:
            raise ValueError(f"length: a window has {longest} tokens, but max_model_len is {most}")
        weight_bytes = bytes_of_weights(runner.model)
        speed = compare(llm, SPEED, REPEATS)
        llm.reset_prefix_cache()  # the windows are written over what it has
        with open(job.logits_file, "wb" if job.is_reference else "rb") as file, torch.inference_mode():
            comparison = _Comparison(file, job.is_reference, job.every)
            losses = torch.cat([_score(runner, *window, comparison) for window in job.windows]).double()
            divergence = comparison.result(losses)
        params = SamplingParams(temperature=0, max_tokens=MAX_ANSWER_TOKENS)
        outputs = llm.chat(job.chats, params, use_tqdm=False) if job.chats else []
    return Result(
        weight_bytes=weight_bytes,
        peak_bytes=speed.memory.peak_bytes,
        output_tokens_per_s=speed.medians()["lightvllm"].output_tokens_per_s,
        num_tokens=len(losses),
        perplexity=losses.mean().exp().item(),
        divergence=divergence,
        texts=[output.outputs[0].text for output in outputs],
    )


def bytes_of_weights(model: torch.nn.Module) -> int:
    """All tensors that the model holds, each counted once: parameters, and what linear layers packed."""
    tensors: list[Tensor] = list(model.parameters())
    for module in model.modules():
        if isinstance(module, Linear):
            tensors += _tensors_of(module.product)
    return sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())


def _tensors_of(part: object) -> Iterator[Tensor]:
    """Those that a product holds, or some within it."""
    if isinstance(part, Tensor):
        yield part
    else:
        for value in part if isinstance(part, list) else getattr(part, "__dict__", {}).values():
            yield from _tensors_of(value)


def _score(runner: ModelRunner, token_ids: list[int], first_counted: int, comparison: "_Comparison") -> Tensor:
    """The negative log-likelihood of each counted token, [num_counted]."""
    hidden = runner.hidden_states(token_ids)[first_counted - 1 : -1]
    targets = torch.tensor(token_ids[first_counted:], device=hidden.device)
    losses = []
    for rows, wanted in zip(hidden.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True):
        logits = runner.model.compute_logits(rows).float()
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none").cpu())
        comparison.add(logits.cpu())
    return torch.cat(losses)


class _Comparison:
    """Writes the reference's logits, or compares a variant's with them as they come."""

    def __init__(self, file: BinaryIO, is_reference: bool, every: int) -> None:
        self.file = file
        self.is_reference = is_reference
        self.every = every
        self.seen = 0
        self.num_tokens = 0
        self.sums = dict.fromkeys(("top_1", "kl", "difference", "spread"), 0.0)
        self.worst = 0.0

    def add(self, logits: Tensor) -> None:
        """logits: [num_rows, vocab_size] float32"""
        first = -self.seen % self.every
        self.seen += len(logits)
        logits = logits[first :: self.every]
        if self.is_reference:
            self.file.write(logits.numpy().tobytes())
        elif len(logits):
            wanted = torch.from_numpy(np.fromfile(self.file, np.float32, logits.numel()).reshape(logits.shape))
            self._compare(logits, wanted)

    def _compare(self, logits: Tensor, wanted: Tensor) -> None:
        self.num_tokens += len(logits)
        found_logprobs, wanted_logprobs = logits.log_softmax(-1), wanted.log_softmax(-1)
        difference = (logits - wanted).abs()
        self.sums["top_1"] += (logits.argmax(-1) == wanted.argmax(-1)).sum().item()
        self.sums["kl"] += (wanted_logprobs.exp() * (wanted_logprobs - found_logprobs)).double().sum().item()
        self.sums["difference"] += difference.mean(-1).double().sum().item()
        self.sums["spread"] += wanted.std(-1).double().sum().item()
        self.worst = max(self.worst, difference.max().item())

    def result(self, losses: Tensor) -> Divergence | None:
        """None for the reference itself. losses: [num_counted] float64; the reference's are kept in the file."""
        if self.is_reference:
            self.file.write(losses.numpy().tobytes())
            return None
        differences = losses - torch.from_numpy(np.fromfile(self.file, np.float64, len(losses)))
        error = (differences.std(correction=0) / len(losses) ** 0.5).item()
        top_1, kl, difference, spread = (value / self.num_tokens for value in self.sums.values())
        return Divergence(self.num_tokens, error, top_1, kl, difference / spread, self.worst / spread)


if __name__ == "__main__":
    sys.exit(serve_job(Job, measure))
