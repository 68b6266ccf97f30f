"""/v1/completions: log-probabilities, of the prompt too, as programs that score continuations need them."""

from typing import Any

import pytest

from tests.server.exchange import Api
from tests.server.fakes import FakeEngine, Pace, logprob_of

TEXT = "Ünï 🙂 two"


def joined(chunks: list[Any], index: int = 0) -> dict[str, list[Any]]:
    """The log-probabilities of all chunks of a choice."""
    result: dict[str, list[Any]] = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index and choice["logprobs"] is not None:
                assert choice["logprobs"].keys() == result.keys()
                for name, values in choice["logprobs"].items():
                    result[name] += values
    return result


def test_each_token_has_its_logprob_and_place() -> None:
    api = Api(FakeEngine(TEXT))
    tokenizer = api.engine.tokenizer
    choice = api.complete(prompt="Hi", logprobs=2, max_tokens=50)["choices"][0]
    ids = [*tokenizer.encode(TEXT), api.engine.eos_token_id]
    found = choice["logprobs"]
    assert found["tokens"] == [tokenizer.token_text(token_id) for token_id in ids]
    assert found["token_logprobs"] == [logprob_of(token_id) for token_id in ids]
    one, two = tokenizer.token_text(1), tokenizer.token_text(2)
    for token_id, top in zip(ids, found["top_logprobs"], strict=True):
        named = {tokenizer.token_text(token_id): logprob_of(token_id), one: logprob_of(1), two: logprob_of(2)}
        assert top == named
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if "\ufffd" not in token and token != "<|im_end|>":
            assert choice["text"].startswith(token, offset)
    assert found["text_offset"][-1] == len(TEXT)  # the end-of-sequence token's, which is listed, but no text
    parts = [offset for token, offset in zip(found["tokens"], found["text_offset"], strict=True) if "\ufffd" in token]
    assert set(parts) == {TEXT.index(char) for char in "Üï🙂"}


def test_logprobs_0_are_of_the_token_alone() -> None:
    api = Api(FakeEngine("ab"))
    found = api.complete(prompt="Hi", logprobs=0)["choices"][0]["logprobs"]
    assert [list(top.values()) for top in found["top_logprobs"]] == [[value] for value in found["token_logprobs"]]
    assert api.complete(prompt="Hi")["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 30])
def test_echo_lists_the_prompt(stream: bool, max_tokens: int) -> None:
    api = Api(FakeEngine(TEXT))
    tokenizer = api.engine.tokenizer
    prompt = "Né 🙂 "
    answer = api.complete(prompt=prompt, echo=True, logprobs=1, max_tokens=max_tokens, stream=stream)
    chunks = answer if stream else [answer]
    found = joined(chunks)
    prompt_ids = tokenizer.encode(prompt)
    ids = prompt_ids + [*tokenizer.encode(TEXT), api.engine.eos_token_id][:max_tokens]
    assert found["tokens"] == [tokenizer.token_text(token_id) for token_id in ids]
    assert found["token_logprobs"] == [None, *map(logprob_of, ids[1:])]
    assert found["top_logprobs"][0] is None
    assert all(max(top.values()) == logprob_of(1) for top in found["top_logprobs"][1:])
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        if "\ufffd" not in token and token != "<|im_end|>":
            assert text.startswith(token, offset)
    assert found["text_offset"] == sorted(found["text_offset"])
    if max_tokens:
        assert found["text_offset"][len(prompt_ids)] == len(prompt)


def test_special_tokens_in_an_echoed_prompt_have_their_places() -> None:
    api = Api(FakeEngine("a"))
    prompt = "<|im_start|>user\nHi<|im_end|>\n"
    choice = api.complete(prompt=prompt, echo=True, logprobs=0, max_tokens=1)["choices"][0]
    assert choice["text"] == prompt + "a"
    for token, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        assert choice["text"].startswith(token, offset)


def test_scores_as_evaluation_harnesses_read_them() -> None:
    """They send context and continuation as ids, with echo and one token, and cut that token off again."""
    api = Api(FakeEngine(""))  # the model ends at once: the token to cut off is the end-of-sequence token
    context, continuation = [70, 71, 72], [73, 74]
    answer = api.complete(
        prompt=[context + continuation] * 2, temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True
    )
    for choice in answer["choices"]:
        scores = choice["logprobs"]["token_logprobs"][len(context) : -1]
        assert scores == [logprob_of(token_id) for token_id in continuation]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert [max(top.values()) for top in tops] == [logprob_of(1)] * 2


def test_every_choice_has_the_prompts() -> None:
    api = Api(FakeEngine(lambda text, index: "x" * (index + 1)))
    for stream in (False, True):
        answer = api.complete(prompt=["ab", "cd"], n=3, echo=True, logprobs=0, stream=stream, max_tokens=9)
        chunks = answer if stream else [answer]
        for index in range(6):
            prompt = ["ab", "cd"][index // 3]
            tokens = joined(chunks, index)["tokens"]
            assert "".join(tokens) == prompt + "x" * (index % 3 + 1) + "<|im_end|>"


def test_prompt_logprobs() -> None:
    api = Api(FakeEngine("a"))
    tokenizer = api.engine.tokenizer
    choices = api.complete(prompt=["one two", "x"], n=2, prompt_logprobs=1)["choices"]
    for choice in choices:
        ids = tokenizer.encode("one two" if choice["index"] < 2 else "x")
        first, *others = choice["prompt_logprobs"]
        assert first is None
        assert len(others) == len(ids) - 1
        for token_id, entry in zip(ids[1:], others, strict=True):
            assert entry.keys() == {str(token_id), "1"}
            assert entry[str(token_id)] == {
                "logprob": logprob_of(token_id),
                "rank": token_id,
                "decoded_token": tokenizer.token_text(token_id),
            }
        assert choice["logprobs"] is None
    assert "prompt_logprobs" not in api.complete(prompt="ab", echo=True, logprobs=1)["choices"][0]


def test_tokens_named_by_their_ids() -> None:
    api = Api(FakeEngine("🙂"))
    ids = [*api.engine.tokenizer.encode("🙂"), api.engine.eos_token_id]
    answer = api.complete(prompt="Hi", logprobs=1, return_tokens_as_token_ids=True)
    found = answer["choices"][0]["logprobs"]
    assert found["tokens"] == [f"token_id:{token_id}" for token_id in ids]
    assert [list(top) for top in found["top_logprobs"]] == [
        [f"token_id:{token_id}", "token_id:1"] for token_id in ids[:-1]
    ] + [["token_id:2", "token_id:1"]]


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stop", [None, "two"])
@pytest.mark.parametrize("pace", [Pace(), Pace(tokens_per_step=2), Pace(all_at_once=True)], ids=["1", "2", "all"])
def test_streams_say_what_the_whole_answer_says(echo: bool, stop: str | None, pace: Pace) -> None:
    body = {"prompt": ["Hi 🙂", "Ho"], "n": 2, "echo": echo, "logprobs": 1, "return_token_ids": True, "stop": stop}
    body |= {"max_tokens": 40}
    whole = Api(FakeEngine(TEXT, pace=pace)).complete(**body)
    options = {"include_usage": True}
    *chunks, last = Api(FakeEngine(TEXT, pace=pace)).complete(**body, stream=True, stream_options=options)
    assert last["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert joined(chunks, choice["index"]) == choice["logprobs"]
        assert [token_id for one in mine for token_id in one["token_ids"]] == choice["token_ids"]
        assert [one["finish_reason"] for one in mine][-1] == choice["finish_reason"]
        assert [one["finish_reason"] for one in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["stop_reason"] == choice["stop_reason"] == stop
        assert mine[0]["prompt_token_ids"] == choice["prompt_token_ids"]
