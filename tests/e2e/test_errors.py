"""A mistake of the user's is told at once, in words that name it, and leaves the engine as it was."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightvllm import LLM, SamplingParams
from tests.e2e.checkpoint import VOCAB_SIZE, Checkpoint, random_prompts

GREEDY = SamplingParams(temperature=0, max_tokens=4)
(PROMPT,) = random_prompts(20)


@pytest.fixture
def llm(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(text_checkpoint.path, max_model_len=160)


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "words"),
        [
            ("", "empty"),
            ([[]], "empty"),
            ({"prompt": ""}, "empty"),
            ({"prompt_token_ids": []}, "empty"),
            ([VOCAB_SIZE], f"{VOCAB_SIZE}.*{VOCAB_SIZE - 1}"),
            ([5, -1], "-1"),
            ([5, "a"], "prompt"),
            ([[5, 1.5]], "prompt"),
            ([[5, True]], "prompt"),
            ([None], "prompt.*None"),
            (None, "prompt.*None"),
            (5, "prompt.*5"),
            (b"bytes", "prompt"),
            ({"text": "a"}, "prompt.*text"),
            ({"prompt": "a", "prompt_token_ids": [1]}, "prompt"),
            ({"prompt": 5}, "prompt"),
            ({"prompt": "a", "cache_salt": ""}, "cache_salt"),
            ({"prompt": "a", "cache_salt": 5}, "cache_salt.*5"),
            ({"prompt": "a", "multi_modal_data": {}}, "multi_modal_data"),
        ],
    )
    def test_of_a_wrong_form(self, prompt: Any, words: str, llm: LLM) -> None:
        with pytest.raises(ValueError, match=words):
            llm.generate(prompt, GREEDY, use_tqdm=False)

    def test_too_long_with_the_numbers(self, llm: LLM) -> None:
        (prompt,) = random_prompts(160)
        with pytest.raises(ValueError, match=r"160.*159.*160"):
            llm.generate(prompt, GREEDY, use_tqdm=False)
        (output,) = llm.generate(prompt[:159], GREEDY, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 1

    def test_one_wrong_of_many_runs_none(self, llm: LLM) -> None:
        """And afterwards all is as before."""
        expected = llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs
        queries = llm.get_metrics().prefix_cache_queries
        with pytest.raises(ValueError, match="empty"):
            llm.generate([PROMPT, PROMPT, ""], GREEDY, use_tqdm=False)
        assert llm.get_metrics().num_waiting == 0
        assert llm.get_metrics().prefix_cache_queries == queries
        assert llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs == expected

    def test_text_without_a_tokenizer(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(text_checkpoint.path, skip_tokenizer_init=True)
        for prompt in ("text", {"prompt": "text"}):
            with pytest.raises(ValueError, match="tokenizer"):
                llm.generate(prompt, GREEDY, use_tqdm=False)
        with pytest.raises(ValueError, match="tokenizer"):
            llm.chat([{"role": "user", "content": "a"}], GREEDY, use_tqdm=False)
        with pytest.raises(ValueError, match="tokenizer"):
            llm.get_tokenizer()
        for params in (SamplingParams(stop="a"), SamplingParams(bad_words=["a"])):
            with pytest.raises(ValueError, match="tokenizer"):
                llm.generate(PROMPT, params, use_tqdm=False)
        (output,) = llm.generate(PROMPT, GREEDY, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 4


class TestSamplingParams:
    @pytest.mark.parametrize(
        "fields",
        [
            {"stop_token_ids": [VOCAB_SIZE]},
            {"allowed_token_ids": [1, VOCAB_SIZE + 7]},
            {"logit_bias": {VOCAB_SIZE: 1.0}},
        ],
    )
    def test_token_ids_out_of_the_vocabulary(self, fields: dict[str, Any], llm: LLM) -> None:
        ((name, value),) = fields.items()
        with pytest.raises(ValueError, match=rf"{name}.*{max(value)}.*{VOCAB_SIZE - 1}"):
            llm.generate(PROMPT, SamplingParams(**fields), use_tqdm=False)

    def test_changed_to_something_impossible(self, llm: LLM) -> None:
        params = SamplingParams()
        params.temperature = -1
        with pytest.raises(ValueError, match=r"temperature.*-1"):
            llm.generate(PROMPT, params, use_tqdm=False)

    def test_of_another_type(self, llm: LLM) -> None:
        for params in ({"temperature": 0}, "greedy", 5, [None]):
            with pytest.raises(ValueError, match="sampling_params"):
                llm.generate(PROMPT, params, use_tqdm=False)


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "nearest"),
        [("max_model_length", "max_model_len"), ("blocksize", "block_size"), ("enable_prefix_cache", "enable_prefix")],
    )
    def test_unknown_with_the_nearest_name(self, option: str, nearest: str, text_checkpoint: Checkpoint) -> None:
        with pytest.raises(TypeError, match=rf"{option}.*{nearest}"):
            LLM(text_checkpoint.path, **{option: 16})

    def test_unknown_sampling_parameter(self) -> None:
        with pytest.raises(TypeError, match=r"max_token'.*max_tokens"):
            SamplingParams(max_token=5)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"max_num_seqs": 0}, "max_num_seqs.*0.*at least 1"),
            ({"max_num_batched_tokens": 0}, "max_num_batched_tokens.*0.*at least 1"),
            ({"block_size": -1}, "block_size.*-1.*at least 1"),
            ({"max_model_len": 0}, "max_model_len.*0.*at least 2"),
            ({"max_model_len": 1}, "max_model_len.*1"),
            ({"long_prefill_token_threshold": -1}, "long_prefill_token_threshold.*-1"),
            ({"kv_cache_memory_bytes": 0}, "kv_cache_memory_bytes.*0"),
            ({"kv_cache_memory_bytes": 10}, "kv_cache_memory_bytes"),
            ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization.*1.5"),
            ({"scheduling_policy": "lifo"}, "scheduling_policy.*lifo.*fcfs"),
            ({"attention_backend": "magic"}, "attention_backend.*magic.*sdpa"),
            ({"dtype": "int3"}, "dtype.*int3.*bfloat16"),
            ({"device": "toaster"}, "device.*toaster.*cpu"),
            ({"device": "cuda:99"}, "device.*cuda:99"),
            ({"max_logprobs": -2}, "max_logprobs.*-2"),
            ({"max_num_seqs": "many"}, "max_num_seqs.*many"),
            ({"max_model_len": 100.5}, "max_model_len.*100.5"),
            ({"enable_prefix_caching": "no"}, "enable_prefix_caching.*no"),
            ({"chat_template": "nowhere.jinja"}, "chat_template.*nowhere.jinja"),
            ({"tokenizer": "/nowhere"}, "/nowhere"),
        ],
    )
    def test_out_of_range(self, options: dict[str, Any], words: str, text_checkpoint: Checkpoint) -> None:
        with pytest.raises(ValueError, match=words):
            LLM(text_checkpoint.path, **options)

    def test_a_context_that_does_not_fit_the_cache(self, text_checkpoint: Checkpoint) -> None:
        """A request that can never fit is refused with the numbers, here all of them at once."""
        budget = text_checkpoint.kv_cache_bytes(4)
        with pytest.raises(ValueError, match=r"max_model_len.*160 tokens.*240 KiB.*96 KiB.*64"):
            LLM(text_checkpoint.path, max_model_len=160, kv_cache_memory_bytes=budget)

    def test_a_cache_smaller_than_the_context(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        """Without a wish for the context's length it becomes what fits, and a longer prompt is refused."""
        llm = make_llm(text_checkpoint.path, kv_cache_memory_bytes=text_checkpoint.kv_cache_bytes(4))
        with pytest.raises(ValueError, match=r"64.*63.*64"):
            llm.generate(random_prompts(64), GREEDY, use_tqdm=False)
        params = SamplingParams(max_tokens=None, ignore_eos=True)
        (output,) = llm.generate(random_prompts(60), params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 4


class TestFolders:
    def test_missing(self, tmp_path: Path) -> None:
        for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere", "a/b/c"):
            with pytest.raises(ValueError, match=f"model.*{name}"):
                LLM(name)

    def test_not_a_model(self, tmp_path: Path, text_checkpoint: Checkpoint) -> None:
        with pytest.raises(ValueError, match=r"config\.json"):
            LLM(tmp_path)
        with pytest.raises(ValueError, match="model"):
            LLM(text_checkpoint.path / "config.json")
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="architectures"):
            LLM(tmp_path)

    def test_no_tokenizer(self, checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> None:
        with pytest.raises(ValueError, match=r"no tokenizer.*tokenizer.json"):
            LLM(checkpoint("qwen3").path)
        assert make_llm(checkpoint("qwen3").path, skip_tokenizer_init=True).tokenizer is None

    def test_a_tokenizer_from_elsewhere(
        self, checkpoint: Callable[[str], Checkpoint], text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
    ) -> None:
        llm = make_llm(checkpoint("qwen3").path, tokenizer=str(text_checkpoint.path))
        assert llm.generate("text", GREEDY, use_tqdm=False)[0].outputs[0].text

    def test_no_chat_template(self, text_checkpoint: Checkpoint, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
        folder = tmp_path / "model"
        shutil.copytree(text_checkpoint.path, folder)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
        messages = [{"role": "user", "content": "a"}]
        with pytest.raises(ValueError, match="chat_template"):
            make_llm(folder).chat(messages, GREEDY, use_tqdm=False)
        (tmp_path / "template.jinja").write_text("{{ messages[0].content }}!")
        (answer,) = make_llm(folder, chat_template=str(tmp_path / "template.jinja")).chat(
            messages, GREEDY, use_tqdm=False
        )
        assert answer.prompt == "a!"

    @pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
    def test_a_broken_file(self, name: str, text_checkpoint: Checkpoint, tmp_path: Path) -> None:
        shutil.copytree(text_checkpoint.path, tmp_path / "model")
        (tmp_path / "model" / name).write_text('{"half": ')
        with pytest.raises(ValueError, match=name):
            LLM(tmp_path / "model")


def test_a_hub_name_without_network(tmp_path: Path) -> None:
    """Says so, and soon. In a process of its own, as the hub's address is read once."""
    program = "from lightvllm import LLM\ntry:\n    LLM('owner/name')\nexcept ValueError as error:\n    print(error)"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "owner/name" in result.stdout, result.stderr
    assert "hub" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert time.monotonic() - start < 30  # two seconds on a machine that has nothing else to do


class TestClosed:
    def test_refuses_further_calls(self, text_checkpoint: Checkpoint) -> None:
        with LLM(text_checkpoint.path, max_model_len=160) as llm:
            llm.generate(PROMPT, GREEDY, use_tqdm=False)
        with pytest.raises(RuntimeError, match="closed"):
            llm.generate(PROMPT, GREEDY, use_tqdm=False)
        with pytest.raises(RuntimeError, match="closed"):
            llm.chat([{"role": "user", "content": "a"}], GREEDY, use_tqdm=False)
        llm.close()

    def test_frees_the_memory(self, text_checkpoint: Checkpoint) -> None:
        """Weights and cache are gone though the `LLM` itself is still held."""
        import gc

        import torch

        def num_elements() -> int:
            gc.collect()
            return sum(x.numel() for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter))

        before = num_elements()
        llm = LLM(text_checkpoint.path, max_model_len=160)
        llm.generate(PROMPT, GREEDY, use_tqdm=False)
        assert num_elements() > before + 100_000
        llm.close()
        assert num_elements() < before + 1000
