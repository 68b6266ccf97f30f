"""The default model's recipe: every number that decides what `python -m lightvllm.training` makes."""

from lightvllm.model_config import ModelConfig, RopeConfig
from lightvllm.training.tokenizer import VOCAB_SIZE
from lightvllm.training.trainer import TrainConfig

SEED = 20
TOKENIZER_SAMPLES = 6_000
TRAIN_SAMPLES = 24_000
DEV_SAMPLES = 40
TEST_SAMPLES = 150
PAIRS_PER_SAMPLE = 9
STEPS = 12_000
MAX_POSITIONS = 4096


def model_config() -> ModelConfig:
    """The default model's shape: Qwen3, 3.0 M parameters, head size 32."""
    layers = 4
    return ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_layers=layers,
        num_heads=8,
        num_kv_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        # With 16 rotary pairs a head, theta 10,000 would leave a handful that hold still long enough to match names.
        rope=RopeConfig(theta=1_000_000.0),
        layer_windows=(None,) * layers,
        tie_word_embeddings=True,
    )


def train_config(steps: int = STEPS) -> TrainConfig:
    """The default model's training settings."""
    return TrainConfig(steps=steps, seed=SEED, drill_steps=150, context_steps=3_000, checkpoint_every=500)
