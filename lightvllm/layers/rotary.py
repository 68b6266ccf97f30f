"""Rotary position embedding (Su et al., 2021, https://arxiv.org/abs/2104.09864) and its stretched forms."""

import math

import torch
from torch import Tensor

from lightvllm.layers.module import Module
from lightvllm.model_config import RopeConfig

_MOST_KEPT_BYTES = 256 * 2**20


class RotaryEmbedding(Module):
    """Cosines and sines of each token's position, computed once a step for all layers.

    `depends_on_length` (rope type "dynamic") means that a token's angles depend on how long its sequence was when it
    was computed, not on its position alone, so keys cached for one prompt do not serve a longer one.
    """

    def __init__(self, config: RopeConfig, head_dim: int, max_position_embeddings: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.depends_on_length = config.type == "dynamic"
        # Plain attributes, not buffers: they survive construction on the meta device and are never in a checkpoint.
        with torch.device("cpu"):
            self.inv_freq, self.magnitude = _inverse_frequencies(config, head_dim)  # [head_dim / 2]
        self.kept: tuple[Tensor, Tensor] | None = None

    def keep(self, num_positions: int, device: torch.device) -> None:
        """Have the cosines and sines of the first positions at hand, where looking up costs less than computing."""
        if not self.depends_on_length and num_positions * self.head_dim * 8 <= _MOST_KEPT_BYTES:
            self.kept = self._angles(torch.arange(num_positions, device=device), None)

    def forward(self, positions: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """positions: [num_tokens]; lengths: [num_tokens], the sequence length each token was computed at (only read by
        "dynamic"; None is the longest position) -> cos, sin: [num_tokens, 1, head_dim] float32
        """
        if self.kept is not None:
            return self.kept[0][positions], self.kept[1][positions]
        return self._angles(positions, lengths)

    def _angles(self, positions: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `forward`."""
        if self.inv_freq.device != positions.device:
            self.inv_freq = self.inv_freq.to(positions.device)
        if self.depends_on_length:
            lengths = positions.max() + 1 if lengths is None else lengths
            inv_freq = self._dynamic_inverse_frequencies(lengths)
        else:
            inv_freq = self.inv_freq
        angles = positions.float().unsqueeze(-1) * inv_freq
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude

    def _dynamic_inverse_frequencies(self, lengths: Tensor) -> Tensor:
        """NTK-aware scaling that grows with the sequence: [num_tokens] -> [num_tokens, head_dim / 2]"""
        factor, longest = self.config.factor, self.max_position_embeddings
        stretch = factor * lengths.clamp(min=longest).double() / longest - (factor - 1)
        theta = self.config.theta * stretch ** (self.head_dim / (self.head_dim - 2))
        exponents = torch.arange(0, self.head_dim, 2, device=lengths.device).float() / self.head_dim
        return 1.0 / (theta.float().unsqueeze(-1) ** exponents)


def _inverse_frequencies(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """The angle per position of each pair of dimensions, and the factor on cosines and sines."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq = 1.0 / (config.theta**exponents)
    if config.type == "linear":
        return inv_freq / config.factor, 1.0
    if config.type == "llama3":
        return _llama3(config, inv_freq), 1.0
    if config.type == "yarn":
        return _yarn(config, inv_freq, head_dim)
    return inv_freq, 1.0


def _llama3(config: RopeConfig, inv_freq: Tensor) -> Tensor:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, those between blended."""
    low, high = config.parameters["low_freq_factor"], config.parameters["high_freq_factor"]
    turns = config.original_max_position_embeddings * inv_freq / (2 * math.pi)  # within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inv_freq * (kept + (1 - kept) / config.factor)


def _yarn(config: RopeConfig, inv_freq: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (Peng et al., 2023, https://arxiv.org/abs/2309.00071): interpolate the slow dimensions, keep the fast."""
    parameters = config.parameters

    def dimension_of(num_turns: float) -> float:
        wavelength = config.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(config.theta))

    low = dimension_of(parameters.get("beta_fast") or 32)
    high = dimension_of(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    kept = 1 - ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(config.factor) + 1.0 if config.factor > 1 else 1.0

    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention_factor = magnitude(mscale) / magnitude(mscale_all) if mscale and mscale_all else magnitude(1.0)
    return inv_freq * (kept + (1 - kept) / config.factor), float(attention_factor)
