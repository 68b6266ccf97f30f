"""Llama 2 and 3 (Touvron et al., 2023, https://arxiv.org/abs/2307.09288)."""

from lightvllm.layers.attention import AttentionOptions
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM


class LlamaForCausalLM(CausalLM):
    """The plain decoder; its biases are all on or all off."""

    @staticmethod
    def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
        """See `CausalLM.attention_options`."""
        return AttentionOptions(qkv_bias=config.attention_bias, output_bias=config.attention_bias)
