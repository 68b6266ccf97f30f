"""Rounding to the nearest, and rounding that makes up for its errors."""

import pytest
import torch

from lightvllm.layers.linear import Linear
from lightvllm.quantization.calibrate.gptq import compensated_rounding
from lightvllm.quantization.calibrate.grid import Grid, restore, round_inputs


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32), (4, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_is_further_than_half_a_step(bits: int, group_size: int | None, dtype: torch.dtype) -> None:
    grid, weight = Grid(bits, group_size, dtype), random(9, 128)
    scales = grid.scales(weight)
    assert scales.shape == (9, 128 // (group_size or 128))
    assert torch.equal(scales.to(dtype).float(), scales)  # as it is stored
    values = grid.round(weight, scales)
    step = scales.repeat_interleave(group_size or 128, dim=1)
    # The type of the scales may make the largest weight of a group fall short of its place.
    assert ((restore(values, scales) - weight).abs() <= 0.5 * step * (1 + 2**-6)).all()
    assert values.abs().max() == 2 ** (bits - 1) - 1


def test_zeros_stay_zeros() -> None:
    grid = Grid(4, 32, torch.bfloat16)
    weight = torch.zeros(2, 64)
    weight[0, 0] = 3
    scales = grid.scales(weight)
    assert scales.isfinite().all()
    assert torch.equal(restore(grid.round(weight, scales), scales) != 0, weight != 0)


def test_inputs_are_rounded_as_the_kernel_does() -> None:
    linear = Linear(64, [64])
    linear.weight = torch.nn.Parameter(torch.eye(64), requires_grad=False)
    linear.pack(8)
    x = random(5, 64)
    torch.testing.assert_close(linear(x), round_inputs(x))


def test_fitted_scales_lose_least_where_it_counts() -> None:
    grid, weight = Grid(4, 32, torch.bfloat16), random(40, 128)
    importance = random(128, seed=1).exp()
    fitted = grid.fitted_scales(weight, importance)
    assert torch.equal(fitted.to(torch.bfloat16).float(), fitted)

    def lost(scales: torch.Tensor) -> torch.Tensor:
        errors = (restore(grid.round(weight, scales), scales) - weight).square() * importance
        return errors.unflatten(1, (4, 32)).sum(2)

    assert (lost(fitted) <= lost(grid.scales(weight))).all()
    assert lost(fitted).sum() < 0.9 * lost(grid.scales(weight)).sum()
    assert torch.equal(Grid(4, 32, torch.float32).fitted_scales(torch.zeros(2, 64), torch.ones(64)), torch.ones(2, 2))


def output_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    return (inputs @ (rounded - weight).T).norm().item()


def test_compensation_pays_for_inputs_that_belong_together() -> None:
    weight, grid = random(48, 256), Grid(4, 64, torch.bfloat16)
    inputs = random(2000, 24, seed=1) @ random(24, 256, seed=2) + 0.1 * random(2000, 256, seed=3)
    scales = grid.scales(weight)
    values = compensated_rounding(weight, scales, inputs.T @ inputs, grid)
    nearest = output_error(weight, grid.nearest(weight), inputs)
    assert output_error(weight, restore(values, scales), inputs) < 0.5 * nearest


def test_without_anything_to_make_up_with_it_is_rounding() -> None:
    weight, grid = random(8, 192), Grid(4, 32, torch.float32)
    scales = grid.scales(weight)
    values = compensated_rounding(weight, scales, torch.diag(random(192).abs() + 0.1), grid)
    assert torch.equal(values, grid.round(weight, scales))


def test_inputs_that_never_come_do_no_harm() -> None:
    weight, grid = random(16, 64), Grid(4, 32, torch.float32)
    inputs = random(100, 64, seed=1)
    inputs[:, ::2] = 0
    scales = grid.scales(weight)
    values = compensated_rounding(weight, scales, inputs.T @ inputs, grid)
    assert output_error(weight, restore(values, scales), inputs) <= output_error(weight, grid.nearest(weight), inputs)
    with_none = compensated_rounding(weight, scales, torch.zeros(64, 64), grid)
    assert torch.equal(with_none, grid.round(weight, scales))


def test_the_second_weight_takes_the_first_ones_error() -> None:
    """Worked out by hand: two inputs that are always equal, so only the sum of the weights counts."""
    grid = Grid(4, None, torch.float32)
    weight = torch.tensor([[7.0, 1.4, 2.4]])  # a step is 1; 1.4 becomes 1 and leaves 0.4 for 2.4, which makes it 3
    inputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    values = compensated_rounding(weight, grid.scales(weight), inputs.T @ inputs * 1000, grid)
    assert values.tolist() == [[7, 1, 3]]
