"""The training loop: AdamW, warm-up and cosine, clipping, bf16 autocast, resumable checkpoints, DDP under torchrun.

Started by `torchrun`, every process takes its share of each batch and the step equals the one a single process takes.
"""

import csv
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.training.batches import Batch, collate, epoch_order
from lightvllm.training.copying import drill_copying, initialize_copying
from lightvllm.training.dataset import PackedDataset


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `steps` is the whole run: warm-up and cosine are laid over it.

    In the first `context_steps` the tokens of schemas and questions count in the loss as well, not the answers alone:
    they repeat each other's names, and so teach copying.
    """

    steps: int
    batch_size: int = 1
    learning_rate: float = 1e-3
    final_learning_rate: float = 2e-5
    warmup_steps: int = 60
    drill_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.02
    context_steps: int = 0
    clip_norm: float = 1.0
    autocast: bool = True
    seed: int = 0
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: is {getattr(self, name)}, expected at least 1")


class PackedLoss(nn.Module):
    """Cross-entropy on the answers, or on all that has a successor; logits are computed where it counts alone."""

    def __init__(self, model: LightvLLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, with_context: bool) -> Tensor:
        """(loss to minimise, loss of the answers alone), both summed over tokens: [2]"""
        decoder = self.model.model
        hidden = decoder(batch.tokens, batch.positions, batch.attention())
        wanted = batch.labels != -100 if with_context else batch.answers
        logits = decoder.compute_logits(hidden[wanted])  # [num_labels, vocab_size]
        losses = F.cross_entropy(logits.float(), batch.labels[wanted], reduction="none")
        return torch.stack((losses.sum(), losses[batch.answers[wanted]].sum()))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    swing = (config.learning_rate - config.final_learning_rate) / 2
    return config.final_learning_rate + swing * (1 + math.cos(math.pi * min(1.0, progress)))


class Trainer:
    """One run in one folder: `checkpoint.pt`, `log.csv` and `loss.png` go there; a run found there is continued."""

    def __init__(self, model_config: ModelConfig, config: TrainConfig, dataset: PackedDataset, folder: Path) -> None:
        self.config = config
        self.dataset = dataset
        self.folder = folder
        self.rank, self.world_size, self.device = _place()
        self.padded = self.device.type != "cpu"
        self.model = LightvLLM.from_config(model_config, config.seed)
        initialize_copying(self.model.model, torch.Generator().manual_seed(config.seed))
        self.model.to(self.device)
        loss = PackedLoss(self.model)
        self.loss: nn.Module = DistributedDataParallel(loss) if self.world_size > 1 else loss
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.step = 0
        self.log: list[tuple[int, float, float]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        """Where the run's state is kept."""
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes the state of the run; a crash while writing leaves the one before."""
        if self.rank != 0:
            return
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                 "log": self.log, "config": asdict(self.config), "rng": torch.get_rng_state()}  # fmt: skip
        partial = self.checkpoint.with_suffix(".tmp")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        with open(self.folder / "log.csv", "w", newline="") as file:
            csv.writer(file).writerows([("step", "loss", "gradient_norm"), *self.log])

    def resume(self) -> bool:
        """Continues the run in the folder, if there is one.

        The number of steps may differ from that of the start: the learning rate follows the new one from here on.
        Raises ValueError where another setting differs.
        """
        if not self.checkpoint.is_file():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if {**state["config"], "steps": 0} != {**asdict(self.config), "steps": 0}:
            raise ValueError(
                f"{self.checkpoint} is of a run with other settings: {state['config']}; use another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.step, self.log = state["step"], state["log"]
        return True

    def run(self, until: int | None = None, on_checkpoint: Callable[["Trainer"], None] | None = None) -> None:
        """Trains to the end, or to step `until`."""
        end = self.config.steps if until is None else min(until, self.config.steps)
        bar = tqdm(total=self.config.steps, initial=self.step, disable=self.rank != 0, mininterval=5, desc="training")
        per_epoch = len(self.dataset) // self.config.batch_size
        if per_epoch == 0:
            raise ValueError(f"batch_size: is {self.config.batch_size}, the dataset has {len(self.dataset)} sequences")
        epoch, order, ahead = -1, [], None
        if self.step == 0 and self.config.drill_steps:
            drill_copying(self.model.model, self.config.drill_steps, self.config.autocast, self.config.seed)
        while self.step < end:
            if self.step // per_epoch != epoch:
                epoch = self.step // per_epoch
                order = epoch_order(self.dataset, self.config.batch_size, self.config.seed, epoch)
            batch = ahead if ahead is not None else self._batch(order[self.step % per_epoch])
            answer_loss, norm = self._train_step(batch)
            # An accelerator is still at work: the next batch is made meanwhile, unless an epoch ends here.
            more = (self.step + 1) % per_epoch and self.step + 1 < end
            ahead = self._batch(order[(self.step + 1) % per_epoch]) if more else None
            loss = answer_loss.item()
            self.log.append((self.step, loss, norm.item()))
            self.step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if self.step % self.config.checkpoint_every == 0 or self.step == end:
                self.save()
                if on_checkpoint is not None and self.rank == 0:
                    on_checkpoint(self)
        bar.close()

    def close(self) -> None:
        """Leaves the group of processes; after it the trainer cannot train."""
        if isinstance(self.loss, DistributedDataParallel):
            dist.barrier()
            self.loss = (
                self.loss.module
            )  # the wrapper holds on to the group's threads, which must end before Python does
            dist.destroy_process_group()

    def _batch(self, indices: np.ndarray) -> tuple[Batch, int]:
        """(this process's share of a step's sequences, number of answer tokens in all of them)"""
        targets = sum(int(self.dataset.sequence(int(index))[2].sum()) for index in indices)
        mine = indices[self.rank :: self.world_size]
        batch = collate(self.dataset, mine, gap_seed=self.config.seed, padded=self.padded)
        return batch.to(self.device), targets

    def _train_step(self, batch_and_targets: tuple[Batch, int]) -> tuple[Tensor, Tensor]:
        """One optimizer step; (mean loss of an answer token, norm of the gradient), each a scalar."""
        batch, targets = batch_and_targets
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.autocast):
            total, answers = self.loss(batch, self.step < self.config.context_steps)
        # DDP averages the gradients of the processes; the mean over the whole batch is what we want.
        (total * self.world_size / targets).backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        answers = answers.detach()
        if self.world_size > 1:
            dist.all_reduce(answers)
        return answers / targets, norm


def load_checkpoint(folder: Path, model_config: ModelConfig) -> LightvLLM:
    """The model of the run in that folder as its last checkpoint has it. Raises ValueError where there is none."""
    file = folder / "checkpoint.pt"
    if not file.is_file():
        raise ValueError(f"run: {folder} has no checkpoint.pt; train first")
    model = LightvLLM.from_config(model_config)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["model"])
    return model.eval()


@torch.no_grad()
def exact_answers(model: LightvLLM, dataset: PackedDataset) -> float:
    """The share of answers the model would write token for token, greedily.

    One forward pass a sequence tells: an answer comes out exactly where each of its tokens is the likeliest after the
    ones before it. Other SQL may be right as well, so execution accuracy is higher.
    """
    right = total = 0
    device = next(model.parameters()).device
    for index in range(len(dataset)):
        batch = collate(dataset, np.array([index])).to(device)
        decoder = model.model
        logits = decoder.compute_logits(decoder(batch.tokens, batch.positions, batch.attention()))
        wrong = ((logits.argmax(-1) != batch.labels) & batch.answers).cpu()
        segments = torch.from_numpy(dataset.sequence(index)[1].astype(np.int64))
        total += int(segments.max())
        right += int(segments.max()) - len(segments[wrong].unique())
    return right / total


def _place() -> tuple[int, int, torch.device]:
    """(rank, number of processes, device) of this process, as torchrun says it."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return rank, world_size, torch.device("cuda", local_rank) if cuda else torch.device("cpu")


def plot_loss(log: list[tuple[int, float, float]], file: Path) -> None:
    """The loss of every step and its running mean, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps, losses = [entry[0] for entry in log], np.array([entry[1] for entry in log])
    width = max(1, min(50, len(losses) // 10))
    mean = np.convolve(losses, np.ones(width) / width, mode="valid")
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    axes.plot(steps, losses, linewidth=0.4, alpha=0.5, label="step")
    axes.plot(steps[width - 1 :], mean, label=f"mean of {width} steps")
    axes.set(xlabel="step", ylabel="cross-entropy of an answer token", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
