"""What `SamplingParams` changes in the tokens that come out, through the public API."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams
from tests.e2e.checkpoint import IM_START, VOCAB_SIZE, Checkpoint, random_prompts

LETTERS = list(range(ord("a"), ord("z") + 1))
PROMPTS = random_prompts(5, 20, 33)


@pytest.fixture
def llm(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(text_checkpoint.path, max_model_len=160)


def tokens(llm: LLM, prompts: list[list[int]], params: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 24, "ignore_eos": True, **fields})


class TestSeveralCompletions:
    PARAMS = SamplingParams(n=4, seed=5, max_tokens=24, ignore_eos=True)

    def test_they_differ_and_come_in_order(self, llm: LLM) -> None:
        (output,) = llm.generate([PROMPTS[0]], self.PARAMS, use_tqdm=False)
        assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
        assert len({tuple(completion.token_ids) for completion in output.outputs}) == 4
        assert [completion.finish_reason for completion in output.outputs] == ["length"] * 4
        assert output.finished

    def test_the_first_is_what_one_alone_would_be(self, llm: LLM) -> None:
        (several,) = llm.generate([PROMPTS[1]], self.PARAMS, use_tqdm=False)
        (alone,) = llm.generate([PROMPTS[1]], SamplingParams(seed=5, max_tokens=24, ignore_eos=True), use_tqdm=False)
        assert several.outputs[0] == alone.outputs[0]

    @pytest.mark.parametrize("caching", [True, False])
    def test_the_same_seed_gives_the_same_ones_again(
        self, caching: bool, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
    ) -> None:
        llm = make_llm(text_checkpoint.path, max_model_len=160, enable_prefix_caching=caching)
        first, again = llm.generate([PROMPTS[1]] * 2, self.PARAMS, use_tqdm=False)
        assert first.outputs == again.outputs

    def test_they_share_the_blocks_of_the_prompt(self, llm: LLM) -> None:
        (prompt,) = random_prompts(100)
        llm.generate([prompt], self.PARAMS, use_tqdm=False)
        alone = -(-(100 + 24) // 16)
        full_prompt_blocks = 100 // 16
        assert llm.get_metrics().peak_num_used_blocks <= 4 * alone - 3 * full_prompt_blocks

    def test_more_than_may_run_at_once(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(text_checkpoint.path, max_model_len=160, max_num_seqs=2)
        (output,) = llm.generate([PROMPTS[0]], SamplingParams(n=5, seed=1, max_tokens=8), use_tqdm=False)
        assert len(output.outputs) == 5
        assert all(completion.finished() for completion in output.outputs)


class TestSeeds:
    PARAMS = SamplingParams(max_tokens=16, ignore_eos=True)

    def test_a_seed_reproduces(self, llm: LLM) -> None:
        seeded = [SamplingParams(seed=seed, max_tokens=16, ignore_eos=True) for seed in (1, 2, 1)]
        one, two, one_again = tokens(llm, [PROMPTS[0]] * 3, seeded)
        assert one == one_again != two
        assert tokens(llm, [PROMPTS[0]], seeded[1]) == [two]

    def test_without_a_seed_every_request_is_another(self, llm: LLM) -> None:
        first, second = tokens(llm, [PROMPTS[0]] * 2, self.PARAMS)
        third = tokens(llm, [PROMPTS[0]], self.PARAMS)[0]
        assert first != second
        assert third not in (first, second)

    def test_the_engine_s_seed_stands_for_those_not_given(
        self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
    ) -> None:
        runs = [tokens(make_llm(text_checkpoint.path, seed=seed), PROMPTS, self.PARAMS) for seed in (3, 3, 4)]
        assert runs[0] == runs[1]
        assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))

    def test_a_tiny_temperature_is_greedy(self, llm: LLM) -> None:
        assert tokens(llm, PROMPTS, greedy(temperature=1e-6)) == tokens(llm, PROMPTS, greedy())
        assert tokens(llm, PROMPTS, greedy(temperature=1, top_k=1)) == tokens(llm, PROMPTS, greedy())
        assert tokens(llm, PROMPTS, greedy(temperature=1, top_p=1e-6)) == tokens(llm, PROMPTS, greedy())
        assert tokens(llm, PROMPTS, greedy(temperature=1, min_p=1.0)) == tokens(llm, PROMPTS, greedy())


class TestParams:
    def test_one_for_each_prompt(self, llm: LLM) -> None:
        """A mixed batch gives each what it would get alone."""
        params = [
            greedy(max_tokens=5),
            SamplingParams(seed=9, temperature=0.7, top_k=7, max_tokens=9, presence_penalty=1, ignore_eos=True),
            greedy(allowed_token_ids=LETTERS, repetition_penalty=1.2),
        ]
        together = tokens(llm, PROMPTS, params)
        assert [len(completion) for completion in together] == [5, 9, 24]
        assert together == [tokens(llm, [prompt], one)[0] for prompt, one in zip(PROMPTS, params, strict=True)]

    def test_a_wrong_number_of_them(self, llm: LLM) -> None:
        with pytest.raises(ValueError, match=r"sampling_params.*2.*3"):
            llm.generate(PROMPTS, [greedy(), greedy()], use_tqdm=False)

    def test_the_caller_s_own_is_left_alone(self, llm: LLM) -> None:
        params = SamplingParams(max_tokens=3, bad_words=["x"], n=2, prompt_logprobs=1)
        before = repr(params)
        llm.generate(PROMPTS, params, use_tqdm=False)
        assert repr(params) == before

    def test_sixteen_tokens_by_default(self, llm: LLM) -> None:
        assert [len(completion) for completion in tokens(llm, PROMPTS, SamplingParams(ignore_eos=True))] == [16] * 3


class TestLogits:
    def test_allowed_token_ids(self, llm: LLM) -> None:
        for params in (greedy(allowed_token_ids=LETTERS), greedy(temperature=1.5, allowed_token_ids=LETTERS)):
            for completion in tokens(llm, PROMPTS, params):
                assert set(completion) <= set(LETTERS)
                assert len(set(completion)) > 1

    def test_logit_bias(self, llm: LLM) -> None:
        free = tokens(llm, PROMPTS, greedy())[0]
        forced = tokens(llm, PROMPTS, greedy(logit_bias={7: 100}))
        assert forced == [[7] * 24] * 3
        forbidden = tokens(llm, PROMPTS[:1], greedy(logit_bias={free[0]: -100, free[1]: -100}))[0]
        assert not {free[0], free[1]} & set(forbidden)

    def test_bad_words(self, llm: LLM) -> None:
        (free,) = tokens(llm, PROMPTS[:1], greedy(allowed_token_ids=LETTERS))
        pair = bytes(free[4:6]).decode()
        assert pair not in ("th", "in", "an")  # these have tokens of their own
        for words in ([chr(free[4])], [pair]):
            (output,) = llm.generate(PROMPTS[:1], greedy(allowed_token_ids=LETTERS, bad_words=words), use_tqdm=False)
            assert words[0] not in output.outputs[0].text
            last = free.index(free[4]) if len(words[0]) == 1 else bytes(free).decode().index(pair) + 1
            assert output.outputs[0].token_ids[:last] == free[:last]

    @pytest.mark.parametrize("penalty", [1.3, 0.8])
    def test_repetition_penalty_is_transformers(self, penalty: float, llm: LLM, text_checkpoint: Checkpoint) -> None:
        for prompt in PROMPTS:
            expected = text_checkpoint.model.generate(
                torch.tensor([prompt]), max_new_tokens=24, do_sample=False, repetition_penalty=penalty
            )[0, len(prompt) :].tolist()
            assert tokens(llm, [prompt], greedy(repetition_penalty=penalty)) == [expected]

    @pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 1.5), (-1.5, 0.5)])
    def test_presence_and_frequency_penalty(
        self, presence: float, frequency: float, llm: LLM, text_checkpoint: Checkpoint
    ) -> None:
        """Counted over the output alone, subtracted from the logits."""
        expected: list[int] = []
        for _ in range(24):
            logits = text_checkpoint.logits(PROMPTS[1] + expected)[-1]
            counts = torch.bincount(torch.tensor(expected, dtype=torch.int64), minlength=VOCAB_SIZE)
            expected.append(int((logits - frequency * counts - presence * (counts > 0)).argmax()))
        params = greedy(presence_penalty=presence, frequency_penalty=frequency)
        assert tokens(llm, PROMPTS[1:2], params) == [expected]
        assert tokens(llm, PROMPTS[1:2], greedy()) != [expected]


class TestText:
    def test_is_what_the_tokenizer_decodes(self, llm: LLM) -> None:
        """Random bytes are full of half characters; the model's last ids are in no vocabulary."""
        outputs = llm.generate(PROMPTS, SamplingParams(n=4, max_tokens=64, seed=1, ignore_eos=True), use_tqdm=False)
        ids = [completion.token_ids for output in outputs for completion in output.outputs]
        assert any(token >= 265 for completion in ids for token in completion)
        decode = llm.get_tokenizer().backend.decode
        assert [completion.text for output in outputs for completion in output.outputs] == [decode(i) for i in ids]

    def test_without_detokenization(self, llm: LLM) -> None:
        expected = tokens(llm, PROMPTS, greedy())
        outputs = llm.generate(PROMPTS, greedy(detokenize=False, logprobs=1), use_tqdm=False)
        assert [output.outputs[0].token_ids for output in outputs] == expected
        assert {output.outputs[0].text for output in outputs} == {""}
        assert outputs[0].outputs[0].logprobs[0][expected[0][0]].decoded_token is None

    def test_special_tokens(self, llm: LLM) -> None:
        special = llm.get_tokenizer().get_vocab()[IM_START]
        params = greedy(logit_bias={special: 100}, max_tokens=2)
        assert llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].text == ""
        params = greedy(logit_bias={special: 100}, max_tokens=2, skip_special_tokens=False)
        assert llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].text == IM_START * 2


class TestGenerationConfig:
    DEFAULTS = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}  # noqa: RUF012

    @pytest.fixture
    def folder(self, text_checkpoint: Checkpoint, tmp_path: Path) -> Path:
        shutil.copytree(text_checkpoint.path, tmp_path / "model")
        config = {**self.DEFAULTS, "max_new_tokens": 7, "do_sample": True}
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config))
        return tmp_path / "model"

    def test_gives_the_defaults(self, folder: Path, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(folder)
        assert llm.get_default_sampling_params() == SamplingParams(**self.DEFAULTS, max_tokens=7)
        explicit = tokens(make_llm(folder), PROMPTS, SamplingParams(**self.DEFAULTS, max_tokens=7))
        assert tokens(llm, PROMPTS, None) == explicit

    def test_does_not_touch_parameters_that_were_given(self, folder: Path, make_llm: Callable[..., LLM]) -> None:
        assert [
            len(completion) for completion in tokens(make_llm(folder), PROMPTS, SamplingParams(ignore_eos=True))
        ] == [16] * 3

    def test_vllm_means_none(self, folder: Path, make_llm: Callable[..., LLM]) -> None:
        assert make_llm(folder, generation_config="vllm").get_default_sampling_params() == SamplingParams()

    def test_of_another_folder(self, folder: Path, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
        (tmp_path / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
        llm = make_llm(folder, generation_config=str(tmp_path))
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.3)
        with pytest.raises(ValueError, match="generation_config"):
            make_llm(folder, generation_config=str(tmp_path / "nowhere"))
