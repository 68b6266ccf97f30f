"""Small tokenizers of every kind, trained on the spot, and checkpoint folders to keep them in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

CORPUS = [
    "The quick brown fox jumps over the lazy dog, didn't it? I'm sure it's what they've done.",
    "def add(a, b):\n    return a + b  # the sum\n\n\tprint(add(1, 2))",
    "你好，世界！我们用词元来表示文字。 こんにちは 안녕하세요",  # noqa: RUF001
    "naïve café, Straße, Ελλάδα, Привет, مرحبا 👋🏽 👨‍👩‍👧 e\u0301",
] * 5
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(specials: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> Backend:
    """As Qwen's."""
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=list(specials), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["<think>", "→added é"])
    return backend


def byte_level_with_bos() -> Backend:
    """As Llama 3's: tokenizer.json itself puts a BOS in front."""
    backend = byte_level(("<|begin_of_text|>", "<|eot_id|>"))
    bos = ("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


def byte_fallback() -> Backend:
    """As Llama 2's: spaces are ▁, and characters that are not in the vocabulary become byte tokens."""
    backend = Backend(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    specials = ["<unk>", "<s>", "</s>", *BYTES]
    # Two lines only: the characters of the others take the way through byte tokens.
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(CORPUS[:2], trainer)
    tokenizer = json.loads(backend.to_str())
    # The trainer makes the byte tokens special; in a checkpoint they are ordinary.
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] not in BYTES]
    backend = Backend.from_str(json.dumps(tokenizer))
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos])
    return backend


def metaspace() -> Backend:
    """A Unigram model, as T5's."""
    backend = Backend(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def word_piece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=250, special_tokens=["[UNK]", "[SEP]", "[CLS]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def word_level() -> Backend:
    """Without a decoder: tokens are joined by spaces."""
    backend = Backend(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


BACKENDS: dict[str, Callable[[], Backend]] = {
    make.__name__: make for make in (byte_level, byte_level_with_bos, byte_fallback, metaspace, word_piece, word_level)
}


def save(folder: Path, backend: Backend | None, config: dict[str, Any], **files: str | dict[str, Any]) -> Path:
    """Write a checkpoint folder; of `files`, a key `a__b` is the file name a.b."""
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    for name, content in {"tokenizer_config__json": config, **files}.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder
