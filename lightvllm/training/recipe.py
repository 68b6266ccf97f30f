"""The recipes: every number that decides what `python -m lightvllm.training` makes.

`default` is the model that ships, made on an accelerator in minutes. `small` is a third of its size and made on one
processor core in under an hour, for those who want to see all of it happen on a laptop.
"""

from dataclasses import dataclass

from lightvllm.model_config import ModelConfig, RopeConfig
from lightvllm.training.trainer import TrainConfig

MAX_POSITIONS = 4096


@dataclass(frozen=True)
class Recipe:
    """What to generate, what to train on it, and how.

    `train_samples`, `dev_samples` and `test_samples` count databases, the last for each test split; each comes with up
    to `pairs` questions. `accelerator` says that without one it would take days.
    """

    model: ModelConfig
    train: TrainConfig
    tokenizer_samples: int
    train_samples: int
    pairs: int
    accelerator: bool
    dev_samples: int = 40
    test_samples: int = 200

    @property
    def seed(self) -> int:
        """The one seed of data, weights and order."""
        return self.train.seed


def _qwen3(vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        # With 16 rotary pairs a head, theta 10,000 would leave a handful that hold still long enough to match names.
        rope=RopeConfig(theta=1_000_000.0),
        layer_windows=(None,) * layers,
        tie_word_embeddings=True,
    )


RECIPES = {
    "default": Recipe(
        model=_qwen3(4096, 384, 1024, layers=8, heads=12),
        train=TrainConfig(
            steps=7_700, batch_size=64, learning_rate=1.5e-3, warmup_steps=200, drill_steps=300, context_steps=500,
            checkpoint_every=500, seed=20,
        ),
        tokenizer_samples=6_000,
        train_samples=400_000,
        pairs=10,
        accelerator=True,
    ),
    "small": Recipe(
        model=_qwen3(2560, 256, 512, layers=4, heads=8),
        train=TrainConfig(
            steps=12_000, batch_size=1, learning_rate=1e-3, warmup_steps=60, drill_steps=150, context_steps=3_000,
            checkpoint_every=500, seed=20,
        ),
        tokenizer_samples=6_000,
        train_samples=24_000,
        pairs=9,
        accelerator=False,
    ),
}  # fmt: skip
