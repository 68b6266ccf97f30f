"""Moving scales changes what is rounded, not what is computed."""

import pytest
import torch

from lightvllm.layers.linear import Linear
from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.models.decoder import CausalLM, DecoderLayer
from lightvllm.quantization.calibrate.grid import Grid, round_inputs
from lightvllm.quantization.calibrate.migrate import Fold, folds, migrate
from lightvllm.quantization.calibrate.observe import MOST_ROWS, Inputs, observe, run_layer


def make_model(architecture: str, num_kv_heads: int) -> CausalLM:
    config = ModelConfig(
        architecture=architecture, vocab_size=50, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=4,
        num_kv_heads=num_kv_heads, head_dim=32, max_position_embeddings=64, layer_windows=(None,), attention_bias=True,
        mlp_bias=True,
    )  # fmt: skip
    model = LightvLLM.from_config(config).model
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_inputs(*lengths: int) -> list[torch.Tensor]:
    """A few inputs far larger than the others, as language models have them."""
    sizes = torch.ones(64)
    sizes[5::17] = 40
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(length, 64, generator=generator) * sizes for length in lengths]


def only_layer(model: CausalLM) -> DecoderLayer:
    [layer] = model.model.layers
    assert isinstance(layer, DecoderLayer)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_computes_the_same(architecture: str, num_kv_heads: int, dtype: torch.dtype) -> None:
    model = make_model(architecture, num_kv_heads)
    layer, [x] = only_layer(model), make_inputs(20)
    before = run_layer(layer, x, model.model.rotary)
    weights = [module.weight.clone() for module in layer.modules() if isinstance(module, Linear)]
    for fold in folds(layer, dtype):
        wanted = torch.rand(fold.linear.weight.shape[1], generator=torch.Generator().manual_seed(3)) + 0.5
        fold.linear.weight *= fold.divide(fold.share(wanted))
    torch.testing.assert_close(run_layer(layer, x, model.model.rotary), before, rtol=1e-4, atol=1e-3)
    for old, module in zip(weights, (m for m in layer.modules() if isinstance(m, Linear)), strict=True):
        assert not torch.allclose(old, module.weight, rtol=0.05)
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        assert torch.equal(norm.weight.to(dtype).float(), norm.weight)  # as it is stored


@torch.no_grad()
@pytest.mark.parametrize("rounds_inputs", [False, True])
def test_it_pays_where_some_inputs_are_large(rounds_inputs: bool) -> None:
    model = make_model("Qwen3ForCausalLM", 2)
    layer, sequences = only_layer(model), make_inputs(50, 40)
    grid = Grid(8 if rounds_inputs else 4, None if rounds_inputs else 32, torch.float32)
    layer.input_layernorm.weight.copy_(torch.linspace(0.1, 5, 64))
    fold = next(folds(layer, torch.float32))
    linear = fold.linear
    [inputs] = observe(layer, [linear], sequences, model.model.rotary)
    wanted = inputs.rows @ linear.weight.T

    def error(rows: torch.Tensor) -> float:
        x = round_inputs(rows) if rounds_inputs else rows
        return (x @ grid.nearest(linear.weight).T - wanted).norm().item()

    before = error(inputs.rows)
    migrate(fold, inputs, grid, rounds_inputs)
    [inputs] = observe(layer, [linear], sequences, model.model.rotary)
    torch.testing.assert_close(inputs.rows @ linear.weight.T, wanted, rtol=1e-4, atol=1e-3)
    assert error(inputs.rows) < 0.8 * before


@torch.no_grad()
def test_nothing_moves_where_nothing_is_won() -> None:
    """Weights that are on the grid already: any other scale would only lose."""
    linear = Linear(32, [4])
    linear.weight.copy_(torch.randint(-7, 8, (4, 32), generator=torch.Generator().manual_seed(0)))
    linear.weight[:, 0] = 7
    before, taken = linear.weight.clone(), []

    def divide(scale: torch.Tensor) -> torch.Tensor:
        taken.append(scale)
        return scale

    inputs = Inputs(10, with_hessian=False)
    inputs.add(torch.rand(10, 32, generator=torch.Generator().manual_seed(1)) * torch.arange(32))
    migrate(Fold(linear, lambda scale: scale, divide), inputs, Grid(4, 32, torch.float32), rounds_inputs=False)
    assert torch.equal(taken[0], torch.ones(32))
    assert torch.equal(linear.weight, before)


@torch.no_grad()
def test_what_is_observed() -> None:
    """Rows evenly over all tokens, the products of all of them, and no pass further than needed."""
    model = make_model("Qwen3ForCausalLM", 2)
    layer, sequences = only_layer(model), make_inputs(1500, 1, 0, 1100)
    normed = torch.cat([layer.input_layernorm(x) for x in sequences])
    layer.mlp.down_proj.register_forward_pre_hook(lambda *_: pytest.fail("ran on"))
    [inputs] = observe(layer, [layer.self_attn.qkv_proj], sequences, model.model.rotary, with_hessian=True)
    step = -(-len(normed) // MOST_ROWS)
    torch.testing.assert_close(inputs.rows, normed[::step])
    torch.testing.assert_close(inputs.hessian, normed.T @ normed, rtol=1e-3, atol=1e-1)
