"""When an output ends, why it says it did, and what text and tokens remain."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightvllm import LLM, SamplingParams
from lightvllm.outputs import CompletionOutput
from tests.e2e.checkpoint import EOS_IDS, Checkpoint, random_prompts

LETTERS = list(range(ord("a"), ord("z") + 1))
(PROMPT,) = random_prompts(12)
LENGTH = 24


@pytest.fixture
def llm(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(text_checkpoint.path, max_model_len=160)


def complete(llm: LLM, **fields: Any) -> CompletionOutput:
    """A greedy completion in small letters, each a token."""
    params = {"temperature": 0, "max_tokens": LENGTH, "allowed_token_ids": LETTERS, **fields}
    return llm.generate(PROMPT, SamplingParams(**params), use_tqdm=False)[0].outputs[0]


@pytest.fixture
def free(llm: LLM) -> str:
    """What is written when nothing stops it."""
    completion = complete(llm)
    assert completion.text == bytes(completion.token_ids).decode()
    assert (completion.finish_reason, completion.stop_reason) == ("length", None)
    assert len(completion.text) == LENGTH
    return completion.text


class TestStopStrings:
    def test_end_the_text_before_them(self, llm: LLM, free: str) -> None:
        """The stop string is made of several tokens, and the last of them is the output's last."""
        stop = free[9:12]
        completion = complete(llm, stop=stop)
        at = free.index(stop)
        assert completion.text == free[:at]
        assert bytes(completion.token_ids).decode() == free[: at + len(stop)]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)

    def test_may_stay_in_the_text(self, llm: LLM, free: str) -> None:
        stop = free[9:12]
        completion = complete(llm, stop=[stop], include_stop_str_in_output=True)
        assert completion.text == free[: free.index(stop) + len(stop)]
        assert completion.stop_reason == stop

    def test_the_first_to_be_complete_counts(self, llm: LLM, free: str) -> None:
        early, late = free[5:9], free[8:14]
        completion = complete(llm, stop=[late, "never", early])
        assert completion.stop_reason == early
        assert completion.text == free[: free.index(early)]

    def test_the_beginning_of_one_is_not_lost(self, llm: LLM, free: str) -> None:
        """The output ends while its end may still become a stop string: all of it is text."""
        completion = complete(llm, stop=[free[-4:] + "!"])
        assert completion.text == free
        assert (completion.finish_reason, completion.stop_reason) == ("length", None)

    def test_on_the_last_token_there_may_be(self, llm: LLM, free: str) -> None:
        stop = free[9:12]
        completion = complete(llm, stop=stop, max_tokens=free.index(stop) + len(stop))
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)

    def test_do_not_count_before_min_tokens(self, llm: LLM, free: str) -> None:
        assert complete(llm, stop=free[2], min_tokens=LENGTH).text == free

    def test_logprobs_are_those_of_the_tokens(self, llm: LLM, free: str) -> None:
        completion = complete(llm, stop=free[9:12], logprobs=0)
        assert completion.logprobs is not None
        assert [next(iter(entry)) for entry in completion.logprobs] == completion.token_ids

    def test_end_their_own_completion_only(self, llm: LLM) -> None:
        fields = {"n": 3, "seed": 3, "allowed_token_ids": LETTERS, "max_tokens": 40}
        (free,) = llm.generate(PROMPT, SamplingParams(**fields), use_tqdm=False)
        stop = free.outputs[1].text[6:9]
        assert stop not in free.outputs[0].text
        assert stop not in free.outputs[2].text
        (stopped,) = llm.generate(PROMPT, SamplingParams(**fields, stop=stop), use_tqdm=False)
        assert stopped.outputs[0] == free.outputs[0]
        assert stopped.outputs[2] == free.outputs[2]
        assert stopped.outputs[1].text == free.outputs[1].text[: free.outputs[1].text.index(stop)]


class TestStopTokens:
    def test_end_the_output_and_are_no_text(self, llm: LLM, free: str) -> None:
        stop = ord(free[7])
        completion = complete(llm, stop_token_ids=[0, stop])
        at = free.index(free[7])
        assert completion.token_ids == list(free[: at + 1].encode())
        assert completion.text == free[:at]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)

    def test_may_stay_in_the_text(self, llm: LLM, free: str) -> None:
        completion = complete(llm, stop_token_ids=[ord(free[7])], include_stop_str_in_output=True)
        assert completion.text == free[: free.index(free[7]) + 1]

    def test_are_forbidden_before_min_tokens(self, llm: LLM, free: str) -> None:
        stop = ord(free[0])
        assert complete(llm, stop_token_ids=[stop]).token_ids == [stop]
        completion = complete(llm, stop_token_ids=[stop], min_tokens=5)
        assert stop not in completion.token_ids[:5]
        assert len(completion.token_ids) >= 5

    def test_length_counts_when_no_stop_came(self, llm: LLM, free: str) -> None:
        completion = complete(llm, max_tokens=4)
        assert (completion.text, completion.finish_reason, completion.stop_reason) == (free[:4], "length", None)


class TestEndOfSequence:
    @pytest.fixture
    def with_eos(self, text_checkpoint: Checkpoint, tmp_path: Path, make_llm: Callable[..., LLM]) -> Callable[..., LLM]:
        """`with_eos(ids)`: the same model, with these as the end-of-sequence tokens of its generation config."""

        def make(eos_token_id: Any) -> LLM:
            folder = tmp_path / "model"
            shutil.copytree(text_checkpoint.path, folder, dirs_exist_ok=True)
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_id}))
            return make_llm(folder, max_model_len=160)

        return make

    @pytest.mark.parametrize("position", [0, 1, 2])
    def test_every_one_of_a_list_counts(self, position: int, free: str, with_eos: Callable[..., LLM]) -> None:
        eos = [0, 1]
        eos.insert(position, ord(free[7]))
        completion = complete(with_eos(eos))
        at = free.index(free[7])
        assert completion.token_ids == list(free[: at + 1].encode())
        assert completion.text == free[:at]
        assert (completion.finish_reason, completion.stop_reason) == ("stop", None)

    def test_a_single_one(self, free: str, with_eos: Callable[..., LLM]) -> None:
        assert complete(with_eos(ord(free[7]))).text == free[: free.index(free[7])]

    def test_ignored(self, free: str, with_eos: Callable[..., LLM]) -> None:
        llm = with_eos([0, ord(free[7])])
        assert complete(llm, ignore_eos=True).text == free
        completion = complete(llm, ignore_eos=True, stop_token_ids=[ord(free[7])])
        assert (completion.finish_reason, completion.stop_reason) == ("stop", ord(free[7]))

    def test_forbidden_before_min_tokens(self, free: str, with_eos: Callable[..., LLM]) -> None:
        completion = complete(with_eos([0, ord(free[0])]), min_tokens=9)
        assert ord(free[0]) not in completion.token_ids[:9]

    def test_on_the_last_token_there_may_be(self, free: str, with_eos: Callable[..., LLM]) -> None:
        completion = complete(with_eos(ord(free[7])), max_tokens=free.index(free[7]) + 1)
        assert completion.finish_reason == "stop"

    def test_a_special_token_is_no_text(self, llm: LLM) -> None:
        for eos in EOS_IDS:
            params = SamplingParams(temperature=0, logit_bias={eos: 100})
            completion = llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0]
            assert (completion.token_ids, completion.text) == ([eos], "")
            assert (completion.finish_reason, completion.stop_reason) == ("stop", None)
