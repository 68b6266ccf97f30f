"""What goes wrong with one request ends that request: the others get what they always get, and so do later ones."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams, kernels
from lightvllm.outputs import RequestOutput
from tests.e2e.checkpoint import EOS_IDS, Checkpoint, random_prompts

NUM_TOKENS = 20
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
POISON = 299
PROMPTS = [[token % POISON for token in prompt] for prompt in random_prompts(30, 5, 17, 44)]


@pytest.fixture(scope="module")
def poisoned(checkpoint: Callable[[str], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has one token with a broken embedding, as a damaged or half-trained checkpoint may.

    What it computes for a text with this token is not a number, as it is where float16 overflows.
    """
    model = copy.deepcopy(checkpoint("llama-multi-head").model)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
        model.lm_head.weight[POISON] = 0
    path = tmp_path_factory.mktemp("poisoned")
    model.save_pretrained(path)
    return path


@pytest.fixture(params=["kernel", "kernel-int8", "sdpa", "sdpa-int8", "reference"])
def backend(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> dict[str, str]:
    """The options that choose it, and the type of its cache."""
    name, _, kv_cache_dtype = request.param.partition("-")
    if name == "kernel" and not (kernels.COMPILED and pytestconfig.getoption("device") == "cpu"):
        pytest.skip("the compiled attention kernel is not here")
    return {"attention_backend": name, "kv_cache_dtype": kv_cache_dtype or "auto"}


def cache_bytes(num_blocks: int, backend: dict[str, str]) -> int:
    """The `kv_cache_memory_bytes` of so many blocks of 16 tokens: keys and values, 3 layers of 4 heads of 16."""
    return 2 * 3 * 4 * (16 + 4 if backend["kv_cache_dtype"] == "int8" else 16 * 4) * 16 * num_blocks


def run(llm: LLM, prompts: list[list[int]], params: Any = GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


class TestNotANumber:
    BAD = [*PROMPTS[0][:20], POISON, *PROMPTS[0][20:]]  # noqa: RUF012

    @pytest.fixture
    def expected(self, poisoned: Path, make_llm: Callable[..., LLM], backend: dict[str, str]) -> list[list[int]]:
        llm = make_llm(poisoned, skip_tokenizer_init=True, max_model_len=160, **backend)
        return tokens(run(llm, PROMPTS))

    @pytest.mark.parametrize("chunk", [4096, 16, 5])
    @pytest.mark.parametrize("block_size", [16, 3])
    def test_ends_its_own_request(
        self,
        chunk: int,
        block_size: int,
        poisoned: Path,
        expected: list[list[int]],
        make_llm: Callable[..., LLM],
        backend: dict[str, str],
    ) -> None:
        """Beside it, after it in the same cache blocks, and behind the prefix it shares with healthy ones."""
        llm = make_llm(
            poisoned,
            skip_tokenizer_init=True,
            max_model_len=96,
            **backend,
            max_num_batched_tokens=chunk,
            block_size=block_size,
            kv_cache_memory_bytes=cache_bytes(16, backend),  # 256 tokens: blocks are soon used again
        )
        for seed in (None, 3):
            bad_params = SamplingParams(temperature=0 if seed is None else 1, seed=seed, max_tokens=NUM_TOKENS)
            params = [GREEDY, GREEDY, bad_params, GREEDY, GREEDY]
            *outputs, last, later = run(llm, [*PROMPTS[:2], self.BAD, *PROMPTS[2:]], params)
            bad = outputs.pop(2)
            assert bad.finished
            assert bad.outputs[0].finish_reason == "error"
            assert "NaN" in str(bad.outputs[0].stop_reason)
            assert tokens([*outputs, last, later]) == expected
        for prompt, completion in zip(PROMPTS, expected, strict=True):
            assert tokens(run(llm, [prompt])) == [completion]

    @pytest.mark.parametrize("num_healthy", [18, 20, 33])
    def test_leaves_its_healthy_prefix_healthy(
        self,
        num_healthy: int,
        poisoned: Path,
        expected: list[list[int]],
        make_llm: Callable[..., LLM],
        backend: dict[str, str],
    ) -> None:
        """It shows in the last of several chunks; by then the blocks before the broken token can be found by others."""
        llm = make_llm(
            poisoned,
            skip_tokenizer_init=True,
            max_model_len=160,
            **backend,
            max_num_batched_tokens=16,
            block_size=2,
        )
        bad = [*PROMPTS[3][:num_healthy], POISON, *PROMPTS[0], *PROMPTS[0]]
        assert run(llm, [bad])[0].outputs[0].finish_reason == "error"
        (output,) = run(llm, [PROMPTS[3]])
        assert output.num_cached_tokens > 0
        assert tokens([output]) == [expected[3]]

    def test_leaves_nothing_behind_when_it_is_aborted(
        self, poisoned: Path, expected: list[list[int]], make_llm: Callable[..., LLM], backend: dict[str, str]
    ) -> None:
        """Aborted in the middle of its prompt, before anyone saw that it is broken; then its blocks serve others."""
        llm = make_llm(
            poisoned,
            skip_tokenizer_init=True,
            **backend,
            max_num_batched_tokens=24,
            kv_cache_memory_bytes=cache_bytes(5, backend),
        )
        llm.engine.add_request("bad", [POISON] * 70, GREEDY)
        llm.engine.step()
        llm.engine.step()
        llm.engine.abort_request(["bad"])
        for prompt, completion in zip(PROMPTS, expected, strict=True):
            assert tokens(run(llm, [prompt])) == [completion]


class TestNoTokenLeft:
    def test_ends_its_own_request(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        """Everything it may write is forbidden: the end of sequence by min_tokens, the rest by allowed_token_ids."""
        llm = make_llm(text_checkpoint.path, max_model_len=160)
        expected = tokens(run(llm, PROMPTS))
        impossible = SamplingParams(allowed_token_ids=EOS_IDS, min_tokens=3)
        outputs = run(llm, [*PROMPTS, PROMPTS[0]], [GREEDY] * 4 + [impossible])
        assert tokens(outputs[:4]) == expected
        assert outputs[4].outputs[0].finish_reason == "error"
        assert "allowed_token_ids" in str(outputs[4].outputs[0].stop_reason)

    def test_ends_one_completion_of_several(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        """Two letters are allowed and each is a bad word once it was written: sooner or later none is left."""
        llm = make_llm(text_checkpoint.path, max_model_len=160)
        params = SamplingParams(n=4, seed=1, max_tokens=30, allowed_token_ids=[97, 98], bad_words=["aa", "ab"])
        (output,) = run(llm, [PROMPTS[0]], params)
        for completion in output.outputs:
            assert completion.finish_reason == ("error" if completion.text.endswith("a") else "length")
        assert {completion.finish_reason for completion in output.outputs} == {"error"}
        assert all(set(completion.text) <= {"a", "b"} for completion in output.outputs)


class TestExceptions:
    """A bug, say, that shows with one request only: whatever raises takes nobody else down."""

    @pytest.fixture
    def llm(self, checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> LLM:
        return make_llm(checkpoint("llama").path, skip_tokenizer_init=True, max_model_len=160)

    def test_in_the_model(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = tokens(run(llm, PROMPTS))
        model = llm.engine.core.executor.worker.runner.model
        forward = model.forward

        def failing(token_ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
            if (token_ids == POISON).any():
                raise RuntimeError("no such luck")
            return forward(token_ids, *arguments)

        monkeypatch.setattr(model, "forward", failing)
        llm.reset_prefix_cache()
        outputs = run(llm, [*PROMPTS[:2], [1, POISON, 2], *PROMPTS[2:]])
        bad = outputs.pop(2)
        assert bad.outputs[0].finish_reason == "error"
        assert "no such luck" in str(bad.outputs[0].stop_reason)
        assert tokens(outputs) == expected
        assert tokens(run(llm, PROMPTS)) == expected

    def test_in_the_sampler(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a few tokens, of which none is lost or said twice."""
        # With log-probabilities, tokens are sampled on the host on a GPU, too.
        params = SamplingParams(seed=4, max_tokens=NUM_TOKENS, logprobs=0)
        expected = tokens(run(llm, PROMPTS, params))
        sampler = llm.engine.core.executor.worker.runner.sampler
        sample = sampler.sample

        def failing(logits: Any, rows: Any, token_ids: Any, num_tokens: Any) -> Any:
            if (num_tokens == len(PROMPTS[3]) + 6).any():
                raise ZeroDivisionError("of all things")
            return sample(logits, rows, token_ids, num_tokens)

        monkeypatch.setattr(sampler, "sample", failing)
        outputs = run(llm, PROMPTS, params)
        assert outputs[3].outputs[0].finish_reason == "error"
        assert "ZeroDivisionError" in str(outputs[3].outputs[0].stop_reason)
        assert outputs[3].outputs[0].token_ids == expected[3][:6]
        assert tokens(outputs[:3]) == expected[:3]

    def test_that_pass(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        """A failure that does not come again costs nobody anything."""
        expected = tokens(run(llm, PROMPTS))
        submit = llm.engine.core.executor.submit
        num_calls = 0

        def failing_once(step: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            output = submit(step)
            if num_calls == 7:
                raise OSError("a hiccup")
            return output

        monkeypatch.setattr(llm.engine.core.executor, "submit", failing_once)
        assert tokens(run(llm, PROMPTS)) == expected
        assert num_calls > 7
