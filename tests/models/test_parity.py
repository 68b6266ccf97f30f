"""The bare model's logits against transformers', in float32, for every architecture and option."""

from pathlib import Path

import pytest
import torch

from lightvllm import LightvLLM
from tests.models.checkpoints import CASES, make_checkpoint


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    oracle = make_checkpoint(tmp_path, case)
    model = LightvLLM.from_pretrained(tmp_path)
    input_ids = torch.randint(0, 300, (2, 70), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = oracle(input_ids).logits
        actual = model(input_ids).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_sharded_checkpoint(tmp_path: Path) -> None:
    oracle = make_checkpoint(tmp_path, "qwen3", max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    input_ids = torch.randint(0, 300, (1, 20))
    with torch.inference_mode():
        torch.testing.assert_close(
            LightvLLM.from_pretrained(tmp_path)(input_ids).logits, oracle(input_ids).logits, rtol=0, atol=1e-4
        )
