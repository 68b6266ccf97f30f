"""A checkpoint folder next to the transformers model it was written from, which is asked what is right."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.models.checkpoints import make_checkpoint

transformers.logging.disable_progress_bar()

VOCAB_SIZE = 300
IM_START, IM_END, END_OF_TEXT = SPECIAL_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
EOS_IDS = [257, 258]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder, and what transformers makes of it."""

    path: Path
    model: transformers.PreTrainedModel

    @classmethod
    def make(cls, path: Path, case: str) -> "Checkpoint":
        return cls(path, make_checkpoint(path, case))

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """What transformers' `generate` continues the prompt with."""
        model = copy.deepcopy(self.model)  # dynamic rope scaling remembers the longest sequence it has seen
        output = model.generate(torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
        return output[0, len(prompt) :].tolist()

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """# [len(token_ids), vocab_size] float32"""
        with torch.inference_mode():
            return copy.deepcopy(self.model)(torch.tensor([token_ids])).logits[0].float()

    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """The distribution of the token after each. # [len(token_ids), vocab_size]"""
        return self.logits(token_ids).log_softmax(dim=-1)

    def kv_cache_bytes(self, num_blocks: int, block_size: int = 16, itemsize: int = 4) -> int:
        """The `kv_cache_memory_bytes` that makes a cache of this many blocks; one byte an item has a scale a head."""
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        head_bytes = head_dim * itemsize + (4 if itemsize == 1 else 0)
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_bytes
        return num_blocks * block_size * token


def random_prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    """Token ids anywhere in the vocabulary, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def make_text_checkpoint(path: Path) -> Checkpoint:
    """A model with a tokenizer and a chat template, whose generation config has two end-of-sequence tokens."""
    checkpoint = Checkpoint.make(path, "qwen3")
    byte_tokenizer().save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": IM_END, "chat_template": CHAT_TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS_IDS}))
    return checkpoint


def byte_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer, as Qwen's: token b is byte b, then special tokens, then a few merges.

    The model has more ids than the tokenizer, as padded vocabularies do; the last mean nothing.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("i", "n"), ("a", "n"), ("an", "d")]
    tokens = [*(alphabet[byte] for byte in range(256)), *SPECIAL_TOKENS, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer
