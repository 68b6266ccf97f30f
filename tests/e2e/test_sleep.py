"""An engine that sleeps gives its memory up, refuses requests in words, and wakes up as it was."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightvllm import LLM, SamplingParams
from lightvllm.bench.random_checkpoint import Shape, write_checkpoint
from lightvllm.errors import EngineAsleep, EngineBusy

SIZES = {"vocab_size": 2000, "hidden_size": 256, "intermediate_size": 512, "layers": 2, "heads": 4, "kv_heads": 2}
CACHE_BYTES = 24 << 20
OPTIONS = {"skip_tokenizer_init": True, "enable_sleep_mode": True, "kv_cache_memory_bytes": CACHE_BYTES}
PROMPTS = [[(7 * i + j) % 1999 for j in range(20 + 9 * i)] for i in range(6)]
PARAMS = [SamplingParams(temperature=0.8 * (i % 2), seed=i, max_tokens=12, logprobs=2) for i in range(6)]
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose head is its embedding."""
    path = tmp_path_factory.mktemp("sleep")
    write_checkpoint(path, Shape(**SIZES, head_dim=64, max_position_embeddings=256))  # type: ignore[arg-type]
    return path


@pytest.fixture
def llm(folder: Path, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(folder, **OPTIONS)


def run(llm: LLM) -> list[Any]:
    """Tokens and log-probabilities."""
    outputs = [output.outputs[0] for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]
    return [(output.token_ids, output.logprobs, output.finish_reason) for output in outputs]


def num_bytes(device: str) -> int:
    """Of all tensors that this process holds."""
    if device != "cpu":
        torch._C._cuda_clearCublasWorkspaces()  # which come with the first product, and stay
        return torch.cuda.memory_allocated()
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("quantization", [None, "int8", "w4"])
def test_outputs_are_the_same_afterwards(
    quantization: str | None, level: int, folder: Path, make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(folder, quantization=quantization, **OPTIONS)
    expected = run(llm)
    for _ in range(2):
        llm.sleep(level)
        assert llm.is_sleeping
        llm.wake_up()
        assert not llm.is_sleeping
        assert run(llm) == expected


def test_level_1_gives_the_cache_up_and_the_gpus_memory(
    folder: Path, make_llm: Callable[..., LLM], device: str
) -> None:
    before = num_bytes(device)
    llm = make_llm(folder, **OPTIONS)
    run(llm)
    awake = num_bytes(device)
    llm.sleep()
    asleep = num_bytes(device)
    assert awake - asleep > 0.99 * CACHE_BYTES
    if device != "cpu":
        assert asleep - before < 100_000  # the weights have 8 MB
    llm.wake_up()
    assert num_bytes(device) == pytest.approx(awake, rel=0.05)


def test_level_2_gives_everything_up(folder: Path, make_llm: Callable[..., LLM], device: str) -> None:
    before = num_bytes(device)
    llm = make_llm(folder, **OPTIONS)
    run(llm)
    awake = num_bytes(device)
    llm.sleep(level=2)
    assert num_bytes(device) - before < 100_000
    llm.wake_up()
    assert num_bytes(device) == pytest.approx(awake, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_other_programs_get_the_memory(folder: Path, make_llm: Callable[..., LLM], device: str) -> None:
    if device == "cpu":
        pytest.skip("the engines run on the CPU (--device)")
    size = 4 << 30
    llm = make_llm(folder, **{**OPTIONS, "kv_cache_memory_bytes": size})
    free = torch.cuda.mem_get_info()[0]
    llm.sleep()
    assert torch.cuda.mem_get_info()[0] - free > 0.99 * size
    llm.wake_up()
    assert torch.cuda.mem_get_info()[0] - free < 0.1 * size


def test_cached_prompts_are_forgotten(llm: LLM) -> None:
    """Their blocks are empty now: a hit would be another prompt's rubbish."""
    llm.generate([PROMPTS[5]] * 2, GREEDY, use_tqdm=False)
    hits = llm.get_metrics().prefix_cache_hits
    llm.sleep()
    llm.wake_up()
    (output,) = llm.generate([PROMPTS[5]], GREEDY, use_tqdm=False)
    assert llm.get_metrics().prefix_cache_hits == hits
    assert output.num_cached_tokens == 0


def test_parts_come_back_in_any_order(llm: LLM) -> None:
    expected = run(llm)
    for level, tags in ((1, ["weights", "kv_cache"]), (2, ["kv_cache", "weights"]), (1, ["kv_cache", "weights"])):
        llm.sleep(level)
        llm.wake_up([tags[0]])
        assert llm.is_sleeping
        with pytest.raises(EngineAsleep):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
        llm.wake_up(tags=[tags[1]])
        assert not llm.is_sleeping
        assert run(llm) == expected


def test_it_may_sleep_more_deeply_and_wake_up_twice(llm: LLM) -> None:
    expected = run(llm)
    for levels in ((1, 2), (2, 1), (1, 1)):
        for level in levels:
            llm.sleep(level)
        llm.wake_up(["weights"])
        llm.sleep(levels[1])
        llm.wake_up()
        llm.wake_up()
        assert run(llm) == expected


def test_requests_are_refused_while_it_sleeps(llm: LLM) -> None:
    llm.sleep()
    for prompts in (PROMPTS, PROMPTS[0]):
        with pytest.raises(RuntimeError, match="sleeps: wake it up"):
            llm.generate(prompts, GREEDY, use_tqdm=False)
    with pytest.raises(EngineAsleep):
        llm.engine.add_request("mine", PROMPTS[0], SamplingParams(n=3))
    assert not llm.engine.has_unfinished_requests()
    llm.wake_up()
    assert len(run(llm)) == len(PROMPTS)


def test_it_does_not_sleep_while_requests_run(llm: LLM) -> None:
    llm.engine.add_request("mine", PROMPTS[0], GREEDY)
    llm.engine.step()
    with pytest.raises(EngineBusy, match="cannot sleep while requests wait or run"):
        llm.sleep()
    assert not llm.is_sleeping
    while llm.engine.has_unfinished_requests():
        outputs = llm.engine.step()
    assert len(outputs[0].outputs[0].token_ids) == 4


@pytest.mark.parametrize("level", [0, 3, -1, True, "1", None, 1.5])
def test_levels_that_are_not_there(level: Any, llm: LLM) -> None:
    with pytest.raises(ValueError, match=r"level: .* is not supported, expected 1 or 2"):
        llm.sleep(level)
    assert not llm.is_sleeping


@pytest.mark.parametrize("tags", ["weights", ["kv-cache"], ["weights", None], [3]])
def test_parts_that_are_not_there(tags: Any, llm: LLM) -> None:
    llm.sleep()
    with pytest.raises(ValueError, match=r"tags: .* is not supported, expected a list of"):
        llm.wake_up(tags)
    assert llm.is_sleeping


def test_it_must_be_enabled(folder: Path, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(folder, skip_tokenizer_init=True, kv_cache_memory_bytes=CACHE_BYTES)
    for change in (llm.sleep, llm.wake_up):
        with pytest.raises(ValueError, match="enable_sleep_mode"):
            change()
    assert not llm.is_sleeping


@pytest.mark.parametrize("level", [1, 2])
def test_closing_it_asleep(level: int, folder: Path, device: str) -> None:
    before = num_bytes(device)
    with LLM(folder, device=device, **OPTIONS) as llm:  # type: ignore[arg-type]
        llm.sleep(level)
    assert num_bytes(device) - before < 100_000
    with pytest.raises(RuntimeError, match="closed"):
        llm.wake_up()


def test_a_checkpoint_that_has_gone(tmp_path: Path, folder: Path, make_llm: Callable[..., LLM]) -> None:
    """It says so, sleeps on, and wakes up once the files are back."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    llm = make_llm(tmp_path, **OPTIONS)
    expected = run(llm)
    llm.sleep(level=2)
    (tmp_path / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(ValueError, match="safetensors"):
        llm.wake_up()
    assert llm.is_sleeping
    (tmp_path / "away").rename(tmp_path / "model.safetensors")
    llm.wake_up()
    assert run(llm) == expected
