"""Weights that can copy before the first step of training.

Writing `SELECT visitor FROM viewings` is mostly copying: having written `view`, find where `view` stood before and
write what followed it there. Two layers do that together (induction heads, Olsson et al., 2022,
https://arxiv.org/abs/2209.11895): the first brings each token the identity of the one before it, the second looks for
the place whose predecessor is the current token and copies what stands there. Left to itself a small model spends most
of a short training on finding this. Here its first two layers start with a rough version of it, in the spirit of
mimetic initialization (Trockman and Kolter, 2023, https://arxiv.org/abs/2305.09828), and a drill of some hundred steps
makes it hold. Everything else starts at random as usual, and all of it is trained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightvllm.attention.dense import DenseAttention
from lightvllm.layers.attention import SelfAttention
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM, DecoderLayer

_EMBEDDING_STD = 0.06
_CONSTANT = (
    0.36  # what every token's embedding holds in dimension 0, for queries and keys that depend on position alone
)
_SHARPNESS = 2.0  # of query and key norms: with weights of 1 no attention over hundreds of tokens can be sharp
_LOCAL_PAIRS = 3  # rotary pairs that turn fast enough to tell neighbours apart
_FAR_PAIR = 5  # rotary pairs from here on hardly turn within a prompt: content is matched in these
_PREDECESSOR_GAIN = 0.15
_COPY_GAIN = 0.5
_DRILL_RATE = 2e-3
_DRILL_TOKENS = 1200
_DRILL_LENGTHS = (8, 200)


@torch.no_grad()
def initialize_copying(model: CausalLM, generator: torch.Generator) -> None:
    """Puts the copying circuit into the first two layers of a freshly initialised Qwen3, in half of their heads."""
    config = model.config
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0.0, _EMBEDDING_STD, generator=generator)
    embedding[:, 0] = _CONSTANT
    first, second = _attention(model, 0), _attention(model, 1)
    for attention in (first, second):
        assert attention.q_norm is not None
        assert attention.k_norm is not None
        attention.q_norm.weight.fill_(_SHARPNESS)
        attention.k_norm.weight.fill_(_SHARPNESS)
    for kv_head in range(max(1, config.num_kv_heads // 2)):
        code, written = (_orthonormal(config.head_dim, config.hidden_size, generator) for _ in range(2))
        _look_back_one(_Head(first, config, kv_head), model.model.rotary.inv_freq)
        _Head(first, config, kv_head).move(code, _PREDECESSOR_GAIN * written.T)
        matched = _orthonormal(config.head_dim, config.head_dim, generator)
        half = config.head_dim // 2
        matched[:_FAR_PAIR], matched[half : half + _FAR_PAIR] = 0.0, 0.0
        head = _Head(second, config, kv_head)
        head.query.copy_(matched @ code)
        head.key.copy_(matched @ written)
        copied = _orthonormal(config.head_dim, config.hidden_size, generator)
        head.move(copied, _COPY_GAIN * copied.T)


class _Head:
    """The weights of a group's first query head and of its key/value head, each [head_dim, hidden_size]."""

    def __init__(self, attention: SelfAttention, config: ModelConfig, kv_head: int) -> None:
        size = config.head_dim
        head = kv_head * (config.num_heads // config.num_kv_heads)
        assert attention.qkv_proj.weight is not None
        assert attention.o_proj.weight is not None
        rows = attention.qkv_proj.weight.split(size)
        self.query = rows[head]
        self.key = rows[config.num_heads + kv_head]
        self.value = rows[config.num_heads + config.num_kv_heads + kv_head]
        self.output = attention.o_proj.weight[:, head * size : (head + 1) * size]  # [hidden_size, head_dim]

    def move(self, read: Tensor, write: Tensor) -> None:
        """What the head reads where it looks and writes where it stands."""
        self.value.copy_(read)
        self.output.copy_(write)


def _look_back_one(head: _Head, frequencies: Tensor) -> None:
    """Makes a head look at the token before, whatever it is: query and key come of the constant dimension alone, and
    the key is turned by one position so that the two meet there."""
    head.query.zero_()
    head.key.zero_()
    pairs = torch.arange(_LOCAL_PAIRS)
    head.query[pairs, 0] = 1.0
    head.key[pairs, 0] = frequencies[pairs].cos()
    head.key[pairs + len(frequencies), 0] = frequencies[pairs].sin()


def _attention(model: CausalLM, index: int) -> SelfAttention:
    layer = model.model.layers[index]
    assert isinstance(layer, DecoderLayer)
    return layer.self_attn


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """[rows, columns] with orthonormal rows; column 0 is left out where there is room, it holds the constant."""
    matrix = torch.randn(columns, rows, generator=generator)
    if columns > rows:
        matrix[0] = 0.0
    return torch.linalg.qr(matrix)[0].T.contiguous()


def drill_copying(model: CausalLM, steps: int, autocast: bool, seed: int) -> float:
    """Trains the circuit on random tokens said twice, until it holds; gives the last step's accuracy.

    Without it the circuit is forgotten: in the first steps on text, whatever predicts the commonest tokens wins.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_DRILL_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    device = next(model.parameters()).device
    right = 0.0
    for step in range(steps):
        length = int(torch.randint(_DRILL_LENGTHS[0], _DRILL_LENGTHS[1], (1,), generator=generator))
        shape = (max(1, _DRILL_TOKENS // (2 * length)), length)
        said = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
        positions = torch.arange(2 * length, device=device).repeat(shape[0])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            hidden = model(said.repeat(1, 2).flatten(), positions, DenseAttention(shape[0]))
            repeated = hidden.unflatten(0, (shape[0], -1))[:, length:-1].flatten(0, 1)
            logits = model.compute_logits(repeated).float()
        wanted = said[:, 1:].flatten()
        optimizer.param_groups[0]["lr"] = _DRILL_RATE * min(1.0, (step + 1) / 30)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, wanted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        right = (logits.argmax(-1) == wanted).float().mean().item()
    return right
