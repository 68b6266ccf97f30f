"""Settings and requests that could be taken and then ignored, or fail late: they hold, or are refused at once."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lightvllm import LLM, SamplingParams
from tests.e2e.checkpoint import Checkpoint

PARAMS = SamplingParams(temperature=0, max_tokens=6)
IDS = {"skip_tokenizer_init": True, "max_model_len": 100}
CPU = {**IDS, "device": "cpu"}


def test_a_cache_larger_than_the_machine_is_refused(checkpoint: Callable[[str], Checkpoint]) -> None:
    with pytest.raises(ValueError, match=r"kv_cache_memory_bytes: 1000000000000000 .* available"):
        LLM(checkpoint("qwen3").path, **IDS, kv_cache_memory_bytes=10**15)


def test_a_context_longer_than_the_positions_is_refused(checkpoint: Callable[[str], Checkpoint]) -> None:
    with pytest.raises(ValueError, match=r"max_model_len: 257 .* 256 positions"):
        LLM(checkpoint("qwen3").path, skip_tokenizer_init=True, max_model_len=257)


def test_a_stretched_context_is_served(checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> None:
    stretched = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    llm = make_llm(checkpoint("llama").path, skip_tokenizer_init=True, max_model_len=300, hf_overrides=stretched)
    (output,) = llm.generate([[1] * 270], PARAMS, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6


def test_a_backend_that_cannot_run_is_refused(checkpoint: Callable[[str], Checkpoint]) -> None:
    with pytest.raises(ValueError, match="attention_backend: 'kernel' cannot run, as the head size, 8"):
        LLM(checkpoint("mistral-head-dim").path, **CPU, attention_backend="kernel")
    with pytest.raises(ValueError, match=r"attention_backend: 'kernel' cannot run.*float16"):
        LLM(checkpoint("qwen3").path, **CPU, attention_backend="kernel", dtype="float16")


@pytest.mark.parametrize("option", [{"tensor_parallel_size": 2}, {"trust_remote_code": True}])
def test_what_is_not_there_yet_is_refused_by_name(
    option: dict[str, object], checkpoint: Callable[[str], Checkpoint]
) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        LLM(checkpoint("qwen3").path, **IDS, **option)


def test_what_vllm_users_set_is_taken(checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]) -> None:
    import torch

    llm = make_llm(
        checkpoint("qwen3").path,
        **IDS,
        tensor_parallel_size=1,
        enforce_eager=True,
        trust_remote_code=False,
        dtype=torch.float32,
    )
    assert llm.config.dtype == "float32"


def test_the_tokenizers_end_of_sequence_ends_a_request(
    text_checkpoint: Checkpoint, tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(text_checkpoint.path, folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    llm = make_llm(folder, max_model_len=100)
    eos = llm.get_tokenizer().eos_token_id
    assert eos is not None
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={eos: 100})
    (output,) = llm.generate("a", params, use_tqdm=False)
    assert output.outputs[0].token_ids == [eos]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)


def test_outputs_do_not_change_afterwards(
    checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(checkpoint("qwen3").path, **IDS)
    prompt = [1, 2, 3]
    (output,) = llm.generate(prompt, PARAMS, use_tqdm=False)
    prompt += output.outputs[0].token_ids
    assert output.prompt_token_ids == [1, 2, 3]
    llm.engine.add_request("x", [4, 5], SamplingParams(max_tokens=3), stream=True)
    snapshots = [output for _ in range(3) for output in llm.engine.step()]
    assert [snapshot.finished for snapshot in snapshots] == [False, False, True]
    assert snapshots[0].metrics is not None
    assert snapshots[0].metrics.finished_time is None


def test_generate_leaves_others_requests_alone(
    checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(checkpoint("qwen3").path, **IDS)
    llm.engine.add_request("mine", [4, 5], SamplingParams(max_tokens=3))
    with pytest.raises(RuntimeError, match="not finished"):
        llm.generate([[1]], PARAMS, use_tqdm=False)
    outputs = [output for _ in range(3) for output in llm.engine.step()]
    assert [output.request_id for output in outputs] == ["mine"]


@pytest.mark.parametrize("salt", ["", "\ud800", 3])
def test_a_salt_that_cannot_be_hashed_is_refused(
    salt: object, checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(checkpoint("qwen3").path, **IDS)
    with pytest.raises(ValueError, match="cache_salt"):
        llm.generate({"prompt_token_ids": [1, 2], "cache_salt": salt}, PARAMS, use_tqdm=False)  # type: ignore[typeddict-item]


def test_a_failed_step_is_logged(
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    llm = make_llm(checkpoint("qwen3").path, **IDS)
    runner = llm.engine.core.executor.worker.runner  # type: ignore[attr-defined]
    monkeypatch.setattr(runner, "model", lambda *_: 1 / 0)
    with caplog.at_level(logging.ERROR):
        (output,) = llm.generate([[1, 2]], PARAMS, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert "ZeroDivisionError" in caplog.text
