"""Triton's draws: against the sampler's own on a CPU, which tokens can be drawn at all, how often, and company."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lightvllm.kernels.triton.sampling import draw
from lightvllm.worker.draw import draw as draw_on_cpu
from tests.kernels.gpu.conftest import cuda_only

INF, NAN = float("inf"), float("nan")


def drawn(
    logits: Tensor, u: object, temperature: object = 1.0, top_k: object = None, top_p: object = 1.0, min_p: object = 0.0
) -> list[int]:
    """Of each row of the logits; what is one number is every row's."""
    rows, size = logits.shape

    def column(value: object, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(value, dtype=dtype).expand(rows).contiguous().to(logits.device)

    return draw(
        logits,
        column(u, torch.float64),
        column(temperature, torch.float32),
        column(size if top_k is None else top_k, torch.int64),
        column(top_p, torch.float64),
        column(min_p, torch.float32),
    ).tolist()


def shares(count: int) -> Tensor:
    """Numbers evenly over [0, 1): what of a distribution can be drawn is."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_same_tokens_as_on_a_cpu(device: str, dtype: torch.dtype) -> None:
    """For the same u, but where the sums' last bits decide."""
    rng = np.random.default_rng(0)
    rows, size = (400 if device == "cuda" else 6), 3000
    logits = torch.from_numpy(rng.normal(0, 3, (rows, size)).astype(np.float32)).to(dtype)
    u, temperature = rng.random(rows), rng.choice([0.3, 0.7, 1.5], rows).astype(np.float32)
    top_k = rng.choice([1, 5, 50, 700 if device == "cuda" else 200, size], rows)
    top_p, min_p = rng.choice([0.3, 0.9, 1.0], rows), rng.choice([0, 0.01, 0.2], rows).astype(np.float32)
    expected = draw_on_cpu(logits.float(), u, temperature, top_k, top_p, min_p).tolist()
    actual = drawn(logits.to(device), u, temperature, top_k, top_p, min_p)
    assert sum(mine != theirs for mine, theirs in zip(actual, expected, strict=True)) <= rows // 100


@pytest.mark.parametrize(
    ("narrowed", "kept"),
    [
        ({}, {0, 1, 2, 3, 4, 5, 6}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 4}, {1, 3, 4, 5}),
        ({"top_p": 1e-6}, {1}),
        ({"top_p": 0.4}, {1, 3}),  # the largest three have 0.208 of it, each
        ({"top_p": 0.5}, {1, 3, 4}),
        ({"min_p": 0.5}, {1, 3, 4, 5, 6}),
        ({"min_p": 0.7}, {1, 3, 4}),
        ({"top_k": 3, "top_p": 0.6}, {1, 3}),  # of what top-k leaves two have two thirds
        ({"top_k": 5, "min_p": 0.7, "top_p": 0.3}, {1}),  # of what both leave one has a third
    ],
)
def test_what_can_be_drawn(device: str, narrowed: dict, kept: set[int]) -> None:
    """Ties are kept by the lower id."""
    logits = torch.tensor([1.5, 3.0, 2.0, 3.0, 3.0, 2.5, 2.5], device=device)
    count = 4 if "top_k" in narrowed or "top_p" in narrowed else 30  # few of what takes the interpreter long
    assert set(drawn(logits.expand(count, 7), shares(count), **narrowed)) == kept


@pytest.mark.parametrize("narrowed", [{"top_k": 2500}, {"top_p": 0.9}, {"top_k": 2800, "top_p": 0.999, "min_p": 1e-3}])
def test_more_than_there_is_place_for(device: str, narrowed: dict) -> None:
    """Of nearly equal weights thousands of tokens stay; so many that are equal that nothing but their ids is left."""
    rng = np.random.default_rng(1)
    rows = 50 if device == "cuda" else 1
    logits = torch.from_numpy(rng.normal(0, 0.1, (rows, 3000)).astype(np.float32)).mul(512).round() / 512
    options = {"top_k": 3000, "top_p": 1.0, "min_p": 0.0} | narrowed
    columns = [np.full(rows, value) for value in options.values()]
    expected = draw_on_cpu(logits, shares(rows).numpy(), np.ones(rows, np.float32), *columns).tolist()
    actual = drawn(logits.to(device), shares(rows), **narrowed)
    assert sum(mine != theirs for mine, theirs in zip(actual, expected, strict=True)) <= rows // 25
    assert drawn(torch.zeros(2, 3000, device=device), [0.9999, 0.25], top_k=2400) == [2399, 600]


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.5}]
)
def test_how_often(device: str, options: dict) -> None:
    """Of numbers that lie evenly in [0, 1) each token gets its share, but for one at either end."""
    count = 20_000 if device == "cuda" else 8
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0))
    probs = (logits.double() / options.get("temperature", 1.0)).softmax(0)
    probs[probs < probs.max() * options.get("min_p", 0)] = 0
    order = probs.argsort(descending=True)
    probs[order[options.get("top_k", 40) :]] = 0
    before = probs[order].cumsum(0) - probs[order]
    probs[order[before >= options.get("top_p", 1.0) * probs.sum()]] = 0
    tokens = torch.tensor(drawn(logits.to(device).expand(count, 40), shares(count), **options))
    found = tokens.bincount(minlength=40)
    assert not found[probs == 0].any()
    assert (found - probs / probs.sum() * count).abs().max() <= 1.01


@pytest.mark.parametrize("narrowed", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.1}])
def test_rows_without_a_choice(device: str, narrowed: dict) -> None:
    logits = torch.zeros(6, 50)
    logits[0, 7], logits[1, 8], logits[2] = NAN, INF, -INF
    logits[3], logits[3, [10, 20]] = -INF, 1.0
    logits[4, 3] = 1e4
    tokens = drawn(logits.to(device), 0.7, **narrowed)
    assert tokens[:3] == [-1, -1, -1]
    assert tokens[3] in (10, 20)
    assert tokens[4] == 3
    assert drawn(logits[:0].to(device), 0.5) == []


@pytest.mark.parametrize("temperature", [1e-5, 1e-30])
def test_nearly_no_temperature_takes_the_largest(device: str, temperature: float) -> None:
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    for narrowed in ({}, {"top_p": 0.9}):
        tokens = drawn(logits.to(device), shares(2), temperature=temperature, **narrowed)
        assert tokens == logits.argmax(dim=1).tolist()


def test_rows_that_lie_apart(device: str) -> None:
    wide = torch.randn(6, 900, device=device)
    for narrowed in ({}, {"top_k": 20}):
        assert drawn(wide[::2, 10:777], shares(3), **narrowed) == drawn(
            wide[::2, 10:777].contiguous(), shares(3), **narrowed
        )


@cuda_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype) -> None:
    """Of a real vocabulary; and in a captured graph, whose inputs change."""
    rng = np.random.default_rng(2)
    rows, size = 256, 151_936
    logits = (torch.randn(rows, size, device="cuda") * torch.rand(rows, 1, device="cuda") * 4).to(dtype)
    options = {
        "temperature": rng.choice([0.5, 1.0, 1.5], rows),
        "top_k": rng.choice([1, 20, 1000, 5000, size], rows),
        "top_p": rng.choice([0.5, 0.95, 1.0], rows),
        "min_p": rng.choice([0, 0.01], rows),
    }
    u = shares(rows)
    together = drawn(logits, u, **options)
    for part in (slice(0, 1), slice(3, 5), slice(100, 140), slice(200, 256)):
        alone = drawn(logits[part], u[part], **{name: values[part] for name, values in options.items()})
        assert alone == together[part]
    columns = [torch.as_tensor(values, device="cuda") for values in (u, *options.values())]
    columns[1], columns[4] = columns[1].float(), columns[4].float()
    draw(logits, *columns)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = draw(logits, *columns)
    before = logits.clone()
    logits.copy_(before.flip(0))
    graph.replay()
    assert out.tolist() == drawn(before.flip(0), u, **options)
