"""Where tokens stand in a text and what they are called, for tokenizers of every kind."""

from pathlib import Path

import pytest

from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.streams import CompletionDelta, RequestDelta
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.outputs import Logprob
from lightvllm.server.generate.completions import PromptWriter
from lightvllm.server.generate.logprobs import TokenNames, chat_logprobs, completion_logprobs, prompt_logprobs
from lightvllm.server.protocol.completion import CompletionRequest
from tests.engine.tokenizer_folders import BACKENDS, save

TEXT = "The café, 你好 🦊 it's"


def tokenizer_of(kind: str, folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(save(folder, BACKENDS[kind](), {"bos_token": "<|begin_of_text|>"}))


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_with_bos", "byte_fallback"])
@pytest.mark.parametrize("as_text", [False, True])
def test_offsets_of_an_echoed_prompt_and_its_output(kind: str, as_text: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    ids = tokenizer.encode(TEXT)
    output_ids = tokenizer.encode(" two", add_special_tokens=False)
    request = CompletionRequest.model_validate({"prompt": TEXT, "echo": True, "logprobs": 0})
    writer = PromptWriter(0, TokenizedPrompt(ids, TEXT if as_text else None), request, tokenizer)
    entries = [{token_id: Logprob(-1.0, 1, None)} for token_id in ids + output_ids]
    output = CompletionDelta(0, " two", output_ids, logprobs=entries[len(ids) :])
    [choice] = writer.write(RequestDelta([output], prompt_logprobs=[None, *entries[1 : len(ids)]]))
    prompt_text = TEXT if as_text else tokenizer.decode(ids, skip_special_tokens=False)
    assert choice.text == prompt_text + " two"
    assert choice.logprobs is not None
    offsets = choice.logprobs.text_offset
    assert offsets[0] == 0
    assert offsets[len(ids)] == len(prompt_text)
    seen = 0
    for token_id, token, offset in zip(ids + output_ids, choice.logprobs.tokens, offsets, strict=True):
        stands = token_id not in tokenizer.special_ids or not as_text
        if "\ufffd" not in token and stands and offset:
            assert choice.text.startswith(token, offset)
            seen += 1
    assert seen > 5


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_with_bos", "byte_fallback"])
def test_the_bytes_of_tokens_make_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, tmp_path)
    names = TokenNames(tokenizer, as_ids=False)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert any("\ufffd" in names.name(token_id) for token_id in ids)
    assert bytes(byte for token_id in ids for byte in names.bytes(token_id)).decode().lstrip(" ") == TEXT


def test_numbers_are_numbers_and_a_shared_name_is_the_likeliest_tokens(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte_level", tmp_path)
    names = TokenNames(tokenizer, as_ids=False)
    first, second = tokenizer.encode("👋", add_special_tokens=False)[:2]
    assert names.name(first) == names.name(second) == "\ufffd"
    entry = {first: Logprob(float("-inf"), 9, None), second: Logprob(-0.5, 1, None)}
    made = completion_logprobs([first], [entry], [0], 1, names)
    assert made.token_logprobs == [-9999.0]
    assert made.top_logprobs == [{"\ufffd": -0.5}]
    assert completion_logprobs([second], [entry], [0], 2, names).top_logprobs == [{"\ufffd": -0.5}]
    [token] = chat_logprobs([first], [entry], -1, names).content
    assert token.logprob == -9999.0
    assert [top.logprob for top in token.top_logprobs] == [-0.5, -9999.0]
    [nothing, found] = prompt_logprobs([None, entry])
    assert nothing is None
    assert found is not None
    assert found[first].logprob == -9999.0


def test_the_chosen_token_is_among_the_likeliest_only_if_it_is_one(tmp_path: Path) -> None:
    names = TokenNames(tokenizer_of("byte_level", tmp_path), as_ids=True)
    chosen = Logprob(-3.0, 7, None)
    entry = {50: chosen, 60: Logprob(-0.5, 1, None), 61: Logprob(-1.0, 2, None)}
    [token] = chat_logprobs([50], [entry], 2, names).content
    assert [top.token for top in token.top_logprobs] == ["token_id:60", "token_id:61"]
    made = completion_logprobs([50], [entry], [0], 2, names)
    assert made.top_logprobs == [{"token_id:50": -3.0, "token_id:60": -0.5, "token_id:61": -1.0}]
