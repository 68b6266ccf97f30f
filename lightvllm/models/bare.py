"""The model without an engine: token ids in, logits out, for training and for holding it against other programs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightvllm.attention.dense import DenseAttention
from lightvllm.hub import resolve_model
from lightvllm.layers.linear import Linear
from lightvllm.model_config import ModelConfig
from lightvllm.models.checkpoint import hf_state_dict, load_weights
from lightvllm.models.decoder import CausalLM
from lightvllm.models.dummy import draw_weights
from lightvllm.models.registry import model_class


@dataclass(frozen=True)
class ModelOutput:
    """logits: [batch_size, seq_len, vocab_size]"""

    logits: Tensor


def load_model(path: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """Build the checkpoint's architecture and give it its weights.

    Raises:
        ValueError: an unknown architecture or weights that do not fit.
    """
    model = empty_model(config)
    load_weights(model, path, dtype, device)
    return model.eval()


@torch.no_grad()  # or weights would be rounded by the differentiable reference
def load_packed_model(
    path: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None,
    load_format: str = "auto",
    batch_invariant: bool = False,
) -> CausalLM:
    """The same, ready for serving, see `CausalLM.pack`. No more than one layer is in memory twice.

    Args:
        load_format: "dummy" draws the weights, and reads none, see `draw_weights`.
        batch_invariant: on a GPU, see `Linear.make_invariant`; on a CPU our products always are.

    Raises:
        ValueError: see `load_model`, `draw_weights` and `Linear.make_invariant`.
    """
    model = empty_model(config)

    def pack(layer: Linear) -> None:
        model.pack_layer(layer, quantization)

    if load_format == "dummy":
        draw_weights(model, dtype, device, pack)
    else:
        load_weights(model, path, dtype, device, pack)
    if batch_invariant and device.type == "cuda":
        for layer in [module for module in model.modules() if isinstance(module, Linear)]:
            layer.make_invariant()
    model.pack(quantization)
    return model.eval()


def empty_model(config: ModelConfig) -> CausalLM:
    """The architecture without its weights, on the meta device.

    Raises:
        ValueError: an unknown architecture.
    """
    with torch.device("meta"):
        return model_class(config.architecture)(config)


class LightvLLM(nn.Module):
    """A bare causal language model.

    Examples:
        >>> model = LightvLLM.from_pretrained("path/to/checkpoint")
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
    """

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    @classmethod
    def from_pretrained(cls, model: str | Path, dtype: str = "auto", device: str = "cpu") -> "LightvLLM":
        """Load a checkpoint folder or hub name; dtype is a torch type's name, "auto" the checkpoint's own."""
        path = resolve_model(model)
        config = ModelConfig.from_pretrained(path)
        return cls(load_model(path, config, torch_dtype(dtype, config), torch.device(device)))

    @classmethod
    def from_config(cls, config: ModelConfig, seed: int = 0) -> "LightvLLM":
        """A model with random float32 weights, trainable."""
        model = model_class(config.architecture)(config)
        model.initialize(torch.Generator().manual_seed(seed))
        return cls(model)

    def forward(self, input_ids: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> ModelOutput:
        """Logits of whole sequences.

        Args:
            input_ids: [batch_size, seq_len]
            positions: [batch_size, seq_len], each token's place in its sequence; counted from 0 if not given.
            mask: who may see whom in place of the causal mask, see `DenseAttention`.
        """
        batch_size, seq_len = input_ids.shape
        if positions is None:
            positions = torch.arange(seq_len, device=input_ids.device).expand(batch_size, -1)
        hidden = self.model(input_ids.flatten(), positions.flatten(), DenseAttention(batch_size, mask))
        return ModelOutput(self.model.compute_logits(hidden).unflatten(0, (batch_size, seq_len)))

    def hf_state_dict(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's names."""
        return hf_state_dict(self.model)


def torch_dtype(name: str, config: ModelConfig) -> torch.dtype:
    """The torch type a user names; "auto" is the checkpoint's own.

    Raises:
        ValueError: it is not one a model can run in.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = config.dtype if name == "auto" else {"float": "float32", "half": "float16"}.get(name, name)
    if name not in known:
        raise ValueError(f"dtype: {name!r} is not supported, expected 'auto' or one of {list(known)}")
    return known[name]
