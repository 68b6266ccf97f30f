"""Qwen2 and Qwen2.5 (Yang et al., 2024, https://arxiv.org/abs/2407.10671)."""

from lightvllm.layers.attention import AttentionOptions
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM


class Qwen2ForCausalLM(CausalLM):
    """Llama with a bias on queries, keys and values, and a sliding window on some layers if the checkpoint says so."""

    @staticmethod
    def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
        """See `CausalLM.attention_options`."""
        return AttentionOptions(qkv_bias=True, sliding_window=config.layer_windows[index])
