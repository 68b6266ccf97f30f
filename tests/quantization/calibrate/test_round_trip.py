"""What `lightvllm quantize` writes, this engine loads: the same numbers, and a default model that still answers."""

from pathlib import Path

import pytest
import torch

from lightvllm import LLM, SamplingParams
from lightvllm.cli.quantize import calibration
from lightvllm.config import DEFAULT_MODEL
from lightvllm.models.bare import LightvLLM
from lightvllm.quantization.calibrate.schemes import SCHEMES
from lightvllm.quantization.calibrate.walk import quantize_checkpoint
from lightvllm.sql import DEMO_QUESTIONS, build_demo_database, build_messages, open_readonly, run_query, schema_prompt
from tests.models.checkpoints import make_checkpoint
from tests.quantization.calibrate.folders import write_plain

TOKENS = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", ["qwen3-tied", "llama-biases"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_random_model(tmp_path: Path, case: str, scheme: str) -> None:
    """Against the folder read by these tests' own code, in float32; the engine's products round inputs as well."""
    make_checkpoint(tmp_path / "model", case)
    quantize_checkpoint(tmp_path / "model", tmp_path / "out", scheme, group_size=32, sequences=TOKENS.tolist())
    write_plain(tmp_path / "out", tmp_path / "plain")
    with torch.no_grad():
        found = LightvLLM.from_pretrained(tmp_path / "out")(TOKENS).logits
        wanted = LightvLLM.from_pretrained(tmp_path / "plain")(TOKENS).logits
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.15


@pytest.mark.parametrize("scheme", ["int8-absmax", "w4-rtn", "w4-gptq"])
def test_the_default_model_still_answers(tmp_path: Path, scheme: str) -> None:
    sequences = calibration(DEFAULT_MODEL, scheme, None, samples=12, length=300) if SCHEMES[scheme].needs_data else []
    quantize_checkpoint(DEFAULT_MODEL, tmp_path / "out", scheme, sequences=sequences)
    build_demo_database(tmp_path / "demo.sqlite")
    connection = open_readonly(tmp_path / "demo.sqlite")
    chats = [build_messages(schema_prompt(connection), question) for question in DEMO_QUESTIONS]
    with LLM(tmp_path / "out") as llm, LLM(DEFAULT_MODEL) as full:
        found, wanted = ([output.outputs[0].text for output in one.chat(chats, SamplingParams(temperature=0,
                         max_tokens=64), use_tqdm=False)] for one in (llm, full))  # fmt: skip
    same = [run_query(connection, a).rows == run_query(connection, b).rows for a, b in zip(found, wanted, strict=True)]
    assert sum(same) >= len(same) - 1
