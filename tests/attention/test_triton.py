"""The backends over Triton's kernels against the reference: steps of decodes, of chunks, and of both."""

import pytest
import torch

pytest.importorskip("triton")

from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.triton import InvariantTritonAttention, TritonAttention, why_not
from tests.attention.device_batches import Step


@pytest.mark.parametrize("backend", [TritonAttention, InvariantTritonAttention])
@pytest.mark.parametrize(("num_decodes", "num_chunks"), [(3, 0), (0, 2), (4, 3)])
@pytest.mark.parametrize(
    ("is_int8", "window"), [(False, None), (True, None), (False, 6)], ids=["plain", "int8", "window"]
)
def test_a_step_equals_the_reference(
    backend: type, num_decodes: int, num_chunks: int, is_int8: bool, window: int | None, device: str
) -> None:
    layer = AttentionLayer(0, 6, 2, 32, 0.3, window)
    step = Step.random(layer, torch.float16, is_int8, 16, num_decodes, num_chunks)
    torch.testing.assert_close(step.run(backend, device), step.expected(), rtol=2e-3, atol=2e-3)


def test_what_cannot_run_is_told() -> None:
    assert "not on cpu" in (why_not(torch.device("cpu"), torch.float32, 64, False) or "")
