"""Layers that each format's own tool packed mean bit for bit what that tool says; `golden/make.py` made the files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from lightvllm.quantization.config import checkpoint_format
from lightvllm.quantization.weight import QuantizedWeight

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def test_every_format_is_there() -> None:
    methods = set()
    for file in FILES:
        with safe_open(file, framework="pt") as handle:
            methods.add(json.loads(handle.metadata()["config"])["quant_method"])
    assert methods == {"gptq", "awq", "compressed-tensors", "bitsandbytes"}
    assert len(FILES) >= 20


def read(file: Path) -> tuple[QuantizedWeight | Tensor, Tensor]:
    """What is made of the file's layer, and what the tool made of it."""
    with safe_open(file, framework="pt") as handle:
        stored = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
        meaning = handle.get_tensor("meaning")
        found = checkpoint_format(json.loads(handle.metadata()["config"])).weight("layer", tuple(meaning.shape), stored)
        assert found is not None
        expected = found.tensors()
        names = {name.removeprefix("layer.") for name in stored if name != "meaning"}
        assert names <= expected.keys()
        assert {name for name, tensor in expected.items() if not tensor.is_optional} <= names
        assert not [name for name in names if expected[name].problem(stored[f"layer.{name}"])]
        return found.read({name: handle.get_tensor(f"layer.{name}") for name in names}), meaning


def dequantize(weight: QuantizedWeight) -> Tensor:
    """[outputs, inputs] in the type of the scales; indices into a codebook of 16 bytes stand for its numbers."""
    values = weight.values.int()
    if weight.codebook is not None:
        values = weight.codebook.int()[values.long()]
    groups = torch.arange(values.shape[1]) // weight.group_size
    zeros = torch.full_like(weight.scales, weight.middle) if weight.zeros is None else weight.zeros
    result = (values - zeros[:, groups]) * weight.scales[:, groups]
    if weight.order is not None:
        result = result[:, weight.order.argsort()]
    return result


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_unpacking(file: Path) -> None:
    weight, meaning = read(file)
    if isinstance(weight, Tensor):
        assert torch.equal(weight, meaning.float())
        return
    result = dequantize(weight)
    if weight.codebook is None:
        # Tools multiply in the type of their scales, half of float32 here: rounded once to that, nothing differs.
        assert torch.equal(result.to(meaning.dtype), meaning)
        return
    # Of the sixteen numbers each is rounded to 8 bits, and all else is exact.
    factors = weight.scales.repeat_interleave(weight.group_size, dim=1) * 127
    assert ((result - meaning).abs() <= factors * (0.5 / 127 + 1e-6)).all()


def test_the_indices_of_a_codebook_are_exact() -> None:
    weight, meaning = read(next(file for file in FILES if file.stem == "nf4-nested"))
    assert isinstance(weight, QuantizedWeight)
    assert weight.codebook is not None
    assert weight.codebook.tolist() == [round(127 * x) + 128 for x in NF4]
    factors = weight.scales.repeat_interleave(weight.group_size, dim=1) * 127
    torch.testing.assert_close(torch.tensor(NF4)[weight.values.long()] * factors, meaning, rtol=1e-6, atol=1e-7)
