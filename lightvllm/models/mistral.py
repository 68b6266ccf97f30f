"""Mistral (Jiang et al., 2023, https://arxiv.org/abs/2310.06825)."""

from lightvllm.layers.attention import AttentionOptions
from lightvllm.model_config import ModelConfig
from lightvllm.models.decoder import CausalLM


class MistralForCausalLM(CausalLM):
    """Llama with sliding-window attention."""

    @staticmethod
    def attention_options(config: ModelConfig, index: int) -> AttentionOptions:
        """See `CausalLM.attention_options`."""
        return AttentionOptions(sliding_window=config.layer_windows[index])
