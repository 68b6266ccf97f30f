"""Qwen3, dense (Yang et al., 2025, https://arxiv.org/abs/2505.09388)."""

from lightvllm.layers.attention import AttentionOptions
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM


class Qwen3ForCausalLM(CausalLM):
    """Llama with an RMSNorm on each query and key head."""

    @staticmethod
    def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
        """See `CausalLM.attention_options`."""
        return AttentionOptions(
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            qk_norm=True,
            sliding_window=config.layer_windows[index],
        )
