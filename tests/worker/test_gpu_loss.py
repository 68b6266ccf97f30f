"""A GPU that is lost to the engine's process: the streams go on in the next one."""

import asyncio
import os
from pathlib import Path

import pytest
import torch

from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.engine.async_engine import AsyncEngine
from lightvllm.engine.process import CoreProcess
from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.sampling_params import SamplingParams
from tests.engine.rig import Log
from tests.worker.losing_core import MARK_VARIABLE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIG = EngineConfig(model=str(DEFAULT_MODEL), device="cuda", dtype="float32", kv_cache_memory_bytes=64 << 20)
PROMPTS = [[i, 17, 9 * i, 40, 5] for i in range(1, 5)]


async def generate(log: Log) -> list[list[int]]:
    """What the prompts' streams give."""
    engine = AsyncEngine(CONFIG, log)
    await engine.start()
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)

    async def one(prompt: list[int]) -> list[int]:
        stream = await engine.add_request(str(prompt[0]), TokenizedPrompt(prompt, None, None), params)
        return [token_id async for delta in stream for part in delta.outputs for token_id in part.token_ids]

    try:
        return await asyncio.gather(*map(one, PROMPTS))
    finally:
        await engine.stop(0)


def test_streams_outlive_a_lost_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = asyncio.run(generate(Log()))
    mark, log = tmp_path / "lost", Log()
    monkeypatch.setattr(CoreProcess, "MODULE", "tests.worker.losing_core")
    monkeypatch.setenv(MARK_VARIABLE, str(mark))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    with caplog.at_level("INFO", logger="lightvllm"):
        outputs = asyncio.run(generate(log))
    assert mark.exists()
    assert log.crashes == [len(PROMPTS)]
    assert "cuda is lost to this process" in caplog.text
    assert outputs == expected
