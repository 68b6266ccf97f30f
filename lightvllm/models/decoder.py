"""The pre-norm decoder that Llama, Mistral and Qwen share. An architecture is a subclass that says where it differs."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lightvllm import kernels
from lightvllm.attention.base import Attention
from lightvllm.layers.attention import AttentionOptions, SelfAttention
from lightvllm.layers.embedding import Embedding
from lightvllm.layers.linear import Linear
from lightvllm.layers.mlp import GatedMLP
from lightvllm.layers.module import Module
from lightvllm.layers.norm import RMSNorm
from lightvllm.layers.rotary import RotaryEmbedding
from lightvllm.model_config import ModelConfig


class DecoderLayer(Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, index: int, options: AttentionOptions) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, index, options)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.has_few_rows = False  # all of its products a kernel for few rows

    def few_rows(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """`forward` for the few tokens of a decode on a GPU: each product takes along what stands around it."""
        x = self.self_attn.few_rows(x, self.input_layernorm, cos, sin, attention)
        return self.mlp.few_rows(x, self.post_attention_layernorm)

    def forward(
        self, x: Tensor, update: Tensor | None, cos: Tensor, sin: Tensor, attention: Attention
    ) -> tuple[Tensor, Tensor | None]:
        """Each sum waits for the norm that follows it, which adds in the same pass.

        Args:
            x: [num_tokens, hidden_size]
            update: what is still to be added to x, of the same shape; None before the first layer.
            cos, sin: [num_tokens, 1, head_dim]

        Returns:
            x, and what is still to be added to it
        """
        if self.has_few_rows and len(x) <= kernels.FEW_ROWS:
            return self.few_rows(x if update is None else x + update, cos, sin, attention), None
        x, normed = self.input_layernorm.add(x, update)
        x, normed = self.post_attention_layernorm.add(x, self.self_attn(normed, cos, sin, attention))
        return x, self.mlp(normed)


class Decoder(Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: ModelConfig, options: list[AttentionOptions], layer_class: type[DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layer_class(config, i, option) for i, option in enumerate(options))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryEmbedding(config.rope, config.head_dim, config.max_position_embeddings)

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention, lengths: Tensor | None) -> Tensor:
        """token_ids, positions, lengths: [num_tokens] -> [num_tokens, hidden_size]"""
        x, update = self.embed_tokens(token_ids), None
        cos, sin = self.rotary(positions, lengths)
        for layer in self.layers:
            x, update = layer(x, update, cos, sin, attention)
        return self.norm.add(x, update)[1]


class CausalLM(Module):
    """A decoder with a language-model head. Subclasses override `attention_options`, and `layer_class` if need be.

    Parameters carry Hugging Face's names, but for the fused ones that `fused_parameters` lists.
    """

    # In a checkpoint these are separate; here they are one, in this order.
    fused_parameters: ClassVar[dict[str, tuple[str, ...]]] = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    layer_class: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.hidden_act != "silu":
            raise ValueError(f"config.json: hidden_act {config.hidden_act!r} is not supported, expected 'silu'")
        self.config = config
        options = [self.attention_options(config, i) for i in range(config.num_layers)]
        self.model = Decoder(config, options, self.layer_class)
        self.lm_head = Linear(config.hidden_size, [config.vocab_size])
        self.tie_weights()

    @staticmethod
    def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
        """What layer `index` of this architecture has in its attention."""
        raise NotImplementedError

    def forward(
        self, token_ids: Tensor, positions: Tensor, attention: Attention, lengths: Tensor | None = None
    ) -> Tensor:
        """Run the decoder over one step's tokens, those of all requests end to end.

        Args:
            token_ids: [num_tokens]
            positions: [num_tokens], each token's place in its sequence, from 0.
            attention: where keys and values live and who sees whom.
            lengths: [num_tokens], see `RotaryEmbedding.forward`.

        Returns:
            hidden states, [num_tokens, hidden_size]
        """
        return self.model(token_ids, positions, attention, lengths)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [num_rows, hidden_size] -> [num_rows, vocab_size]"""
        return self.lm_head(hidden)

    def tie_weights(self) -> None:
        """Make the head's weight the embedding's again, where the checkpoint says it is."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def pack(self, quantization: str | None = None) -> None:
        """Make the linear layers ready for serving, see `Linear.pack`.

        Args:
            quantization: "int8" rounds their weights to 8 bits, "w4" to 4, but the head's, which suffers most, to 8.
                None and the names of checkpoints' formats round nothing.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                self.pack_layer(module, quantization)
        for module in self.modules():
            if isinstance(module, DecoderLayer):
                module.has_few_rows = all(part.has_few_rows for part in module.modules() if isinstance(part, Linear))
            if isinstance(module, Module):
                module.settle()

    def pack_layer(self, layer: Linear, quantization: str | None) -> None:
        """One of them, as soon as it has its weight."""
        layer.pack(self.rounded_bits(layer, quantization))

    def rounded_bits(self, layer: Linear, quantization: str | None) -> int | None:
        """How many bits `pack` rounds a layer's weight to; None where it keeps it."""
        bits = {"int8": 8, "w4": 4}.get(quantization or "")
        return 8 if layer is self.lm_head and bits is not None else bits

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None, std: float = 0.02) -> None:
        """Random weights for training from scratch: normal matrices, zero biases, norms at one."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
