"""The tokenizer against transformers' AutoTokenizer, on checkpoint folders made here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from lightvllm.engine.tokenizer import Tokenizer
from tests.engine.tokenizer_folders import BACKENDS, CORPUS, byte_fallback, byte_level, metaspace, save, word_level

TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "  two  spaces \n\n tabs\t\t",
    "<|im_start|>user\nhi<|im_end|>\n<think>",
    "<s> [INST] hello</s> world",
    "a ▁ b . it 's , they ' re",
    "🏴󠁧󠁢󠁳󠁣󠁴󠁿 \u200b\ufeff\u0000",
]
NAMED = {
    "byte_level": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "byte_level_with_bos": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "byte_fallback": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "metaspace": {"eos_token": "</s>", "unk_token": "<unk>"},
    "word_piece": {"unk_token": "[UNK]", "sep_token": "[SEP]", "cls_token": "[CLS]"},
    "word_level": {"unk_token": "[UNK]"},
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, named) for name, named in NAMED.items()},
    "add_bos_token of the config": ("byte_fallback", {**NAMED["byte_fallback"], "add_bos_token": False}),
    "add_eos_token of the config": ("byte_fallback", {**NAMED["byte_fallback"], "add_eos_token": True}),
    "add_bos_token, no post-processor": ("byte_level", {"bos_token": "<|endoftext|>", "add_bos_token": True}),
    "Llama 2's class": ("byte_fallback", {**NAMED["byte_fallback"], "tokenizer_class": "LlamaTokenizer"}),
    "Qwen's class": ("byte_level", {**NAMED["byte_level"], "tokenizer_class": "Qwen2Tokenizer"}),
    "clean-up": ("word_piece", {**NAMED["word_piece"], "clean_up_tokenization_spaces": True}),
    "clean-up, BPE": ("byte_level", {**NAMED["byte_level"], "clean_up_tokenization_spaces": True}),
    "split special tokens": ("byte_level", {**NAMED["byte_level"], "split_special_tokens": True}),
    "a special token tokenizer.json lacks": ("byte_level", {"eos_token": "</new>"}),
    "a special token that was an ordinary one": ("metaspace", {"eos_token": "▁the"}),
    "named with flags": ("byte_level", {"eos_token": {"__type": "AddedToken", "content": "</new>", "lstrip": True}}),
    "more special tokens": ("byte_level", {"additional_special_tokens": ["<a>", "hi"], "image_token": "<image>"}),
    "added_tokens_decoder": (
        "byte_level",
        {
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                "503": {"content": "<late>", "special": True, "normalized": False, "lstrip": False, "rstrip": True},
                "502": {"content": "<early>", "special": False, "normalized": True},
                "500": {"content": "<think>", "special": True, "normalized": False},
            },
        },
    ),
}


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    make, config = CONFIGS[request.param]
    folder = save(tmp_path_factory.mktemp("tokenizer"), BACKENDS[make](), config)
    return Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encode_equals_transformers(pair: tuple[Tokenizer, Any], add_special_tokens: bool) -> None:
    tokenizer, oracle = pair
    expected = [oracle.encode(text, add_special_tokens=add_special_tokens) for text in TEXTS]
    assert [tokenizer.encode(text, add_special_tokens) for text in TEXTS] == expected
    assert tokenizer.encode_batch(TEXTS, add_special_tokens) == expected


@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_decode_equals_transformers(pair: tuple[Tokenizer, Any], skip_special_tokens: bool) -> None:
    tokenizer, oracle = pair
    samples = [tokenizer.encode(text) for text in TEXTS]
    samples += [[], list(range(len(oracle))), [3, 10**6, 4], list(range(200, 260))]
    for ids in samples:
        assert tokenizer.decode(ids, skip_special_tokens) == oracle.decode(ids, skip_special_tokens=skip_special_tokens)


def test_vocabulary_equals_transformers(pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, oracle = pair
    assert tokenizer.get_vocab() == oracle.get_vocab()
    assert tokenizer.vocab_size == len(oracle)
    assert tokenizer.bos_token_id == oracle.bos_token_id
    assert tokenizer.eos_token_id == oracle.eos_token_id
    assert tokenizer.special_ids >= set(oracle.all_special_ids) - {None}
    assert tokenizer.special_tokens.items() <= oracle.special_tokens_map.items()  # whose classes have defaults


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_encode_of_any_text_equals_transformers(text: str, any_pair: tuple[Tokenizer, Any]) -> None:
    tokenizer, oracle = any_pair
    ids = tokenizer.encode(text)
    assert ids == oracle.encode(text)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module", params=["byte_level_with_bos", "byte_fallback"])
def any_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = save(tmp_path_factory.mktemp("tokenizer"), BACKENDS[request.param](), NAMED[request.param])
    return Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_special_tokens_map_overrides_config(tmp_path: Path) -> None:
    special = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "additional_special_tokens": ["<x>"]}
    save(tmp_path, byte_level(), {"eos_token": "<|endoftext|>"}, special_tokens_map__json=special)
    tokenizer, oracle = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == oracle.eos_token_id == tokenizer.get_vocab()["<|im_end|>"]
    assert tokenizer.encode("a<x>b") == oracle.encode("a<x>b")


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.from_pretrained(save(tmp_path, backend, {}))
    assert tokenizer.decode(tokenizer.encode(CORPUS[0])) == CORPUS[0]


def test_token_text() -> None:
    def texts(backend: Backend, *tokens: str) -> list[str]:
        tokenizer = Tokenizer(backend, special_tokens={}, chat_templates={})
        return [tokenizer.token_text(backend.token_to_id(token)) for token in tokens]

    assert texts(byte_level(), "Ġthe", "Ċ", "ð", "<|im_end|>") == [" the", "\n", "\ufffd", "<|im_end|>"]
    assert texts(byte_fallback(), "▁it", "▁", "<0x0A>", "<0xE4>", "</s>") == [" it", " ", "\n", "\ufffd", "</s>"]
    assert texts(metaspace(), "▁the", "s") == [" the", "s"]
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={})
    assert tokenizer.token_text(10**6) == ""


def test_spaces_between_special_tokens() -> None:
    tokenizer = Tokenizer(word_level(), special_tokens={}, chat_templates={})
    vocab = tokenizer.get_vocab()
    ids = [vocab[word] for word in ("fox", "[SEP]", "[UNK]", "dog", "[SEP]")]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "fox [SEP] [UNK] dog [SEP]"
    without = tokenizer.decode(ids, skip_special_tokens=False, spaces_between_special_tokens=False)
    assert without == "fox [SEP][UNK] dog [SEP]"
    assert tokenizer.decode(ids, spaces_between_special_tokens=False) == "fox dog"


def test_checkpoint_without_tokenizer_json(tmp_path: Path) -> None:
    model = json.loads(byte_level().to_str())["model"]
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "chat_template": "hello"}
    save(tmp_path, None, config, vocab__json=model["vocab"], merges__txt=merges)
    tokenizer, oracle = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.encode(text) for text in TEXTS] == [oracle.encode(text) for text in TEXTS]
    assert tokenizer.decode(tokenizer.encode(CORPUS[2])) == CORPUS[2]
    assert tokenizer.eos_token_id == oracle.eos_token_id is not None
    assert tokenizer.apply_chat_template([{"role": "user", "content": ""}]) == "hello"


def test_conversion_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, None, {}, vocab__json={}, merges__txt="")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"no tokenizer\.json in .*pip install 'lightvllm\[compat\]'"):
        Tokenizer.from_pretrained(tmp_path)


def test_conversion_that_fails(tmp_path: Path) -> None:
    save(tmp_path, None, {"tokenizer_class": "LlamaTokenizer"}, tokenizer__model="not a sentencepiece model")
    with pytest.raises(ValueError, match=r"no tokenizer\.json in .*transformers cannot convert it"):
        Tokenizer.from_pretrained(tmp_path)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer in .*: expected tokenizer\.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    save(tmp_path, byte_level(), {})
    (tmp_path / name).write_text("{ not json")
    with pytest.raises(ValueError, match=rf"cannot read .*{name}"):
        Tokenizer.from_pretrained(tmp_path)


def test_text_that_is_none() -> None:
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={})
    with pytest.raises(ValueError, match="text: expected valid unicode text"):
        tokenizer.encode("half a surrogate pair: \ud83d")
    with pytest.raises(ValueError, match="text: expected valid unicode text"):
        tokenizer.encode_batch(["fine", "\ud83d"])
    with pytest.raises(ValueError, match="got int 5"):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_import_is_light() -> None:
    code = (
        "import sys, lightvllm.engine.tokenizer, lightvllm.engine.detokenizer, lightvllm.engine.chat_template\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
