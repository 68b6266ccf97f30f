"""The exported folder: transformers loads it unchanged, and writes the tokens our own model writes."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from lightvllm.model_config import ModelConfig, RopeConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.sql import build_messages
from lightvllm.training.copying import drill_copying, initialize_copying
from lightvllm.training.dataset import texts
from lightvllm.training.export import export
from lightvllm.training.tokenizer import (
    END,
    PAD,
    START,
    render_question,
    render_system,
    save_tokenizer,
    train_tokenizer,
)

transformers = pytest.importorskip("transformers")
VOCAB = 500
SCHEMA, QUESTION = "toys: toy_id int key, name text, größe real", "Which toys have a größe above 12?"


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(texts("train", 1, 20, 5), VOCAB), folder, 512)
    return folder


@pytest.fixture(scope="module")
def model() -> LightvLLM:
    config = ModelConfig("Qwen3ForCausalLM", VOCAB, 64, 96, 3, 4, 2, 32, 512, rope=RopeConfig(theta=1e6),
                         layer_windows=(None,) * 3, tie_word_embeddings=True)  # fmt: skip
    bare = LightvLLM.from_config(config, seed=4)
    initialize_copying(bare.model, torch.Generator().manual_seed(4))
    drill_copying(bare.model, 120, autocast=False, seed=4)
    return bare


@pytest.fixture(scope="module")
def folder(model: LightvLLM, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(model, tokenizer_folder, folder, torch.float32)
    return folder


def test_transformers_gives_the_same_logits_and_greedy_tokens(model: LightvLLM, folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    ids = tokenizer.apply_chat_template(
        build_messages(SCHEMA, QUESTION), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)
    written = theirs.generate(ids, max_new_tokens=32, min_new_tokens=32)[0, ids.shape[1] :]
    said = ids
    with torch.no_grad():
        for _ in range(32):
            logits = model(said).logits[:, -1]
            logits[:, theirs.generation_config.eos_token_id] = float("-inf")  # as min_new_tokens has it
            said = torch.cat((said, logits.argmax(-1, keepdim=True)), dim=1)
    assert said[0, ids.shape[1] :].tolist() == written.tolist()
    assert len(set(written.tolist())) > 1


def test_the_chat_template_writes_what_training_saw(folder: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = build_messages(SCHEMA, QUESTION)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == render_system(SCHEMA) + render_question(QUESTION)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # Training encodes the two parts apart; a token must not reach over the border between them.
    assert list(ids) == ours.encode(render_system(SCHEMA)).ids + ours.encode(render_question(QUESTION)).ids


def test_the_generation_config_is_greedy_and_knows_both_ends(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.do_sample is False
    assert generation.eos_token_id == [tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)]
    config = ModelConfig.from_pretrained(folder)
    assert config.generation_defaults["temperature"] == 0.0
    assert config.rope.theta == 1e6


@pytest.mark.parametrize(
    "text", ["Größe 漢字 'x'\t\n  y", "SELECT a, COUNT(*) FROM t WHERE b >= 10.5 AND c = 'O''Hara'", "🙂"]
)
def test_any_text_survives_the_tokenizer(tokenizer_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert [tokenizer.token_to_id(token) for token in (PAD, START, END)] == [0, 1, 2]


def test_a_name_has_the_same_tokens_everywhere(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    alone = tokenizer.encode("trovelk").tokens
    for text in (
        "the trovelk is",
        "AVG(trovelk)",
        "t.trovelk = 1",
        "t: trovelk int, b text",
        "SELECT trovelk FROM t",
        "'trovelk'",
    ):
        tokens = tokenizer.encode(text).tokens
        assert any(tokens[i : i + len(alone)] == alone for i in range(len(tokens))), (text, tokens)
