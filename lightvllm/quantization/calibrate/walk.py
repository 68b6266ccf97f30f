"""From a checkpoint folder to a quantized one, a decoder layer at a time.

One layer is in memory, in float32, and what the calibration sequences have become on their way to it: each layer sees
what the rounded ones before it give. Within a layer it is the same: what a linear layer is given comes from those
rounded already.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lightvllm.layers.linear import Linear
from lightvllm.model_config import ModelConfig, read_json
from lightvllm.models.bare import torch_dtype
from lightvllm.models.checkpoint import LazyWeights, open_weights
from lightvllm.models.decoder import CausalLM, DecoderLayer
from lightvllm.models.registry import model_class
from lightvllm.quantization.calibrate.folder import CheckpointFolder, num_bytes, quantized_tensors
from lightvllm.quantization.calibrate.gptq import compensated_rounding
from lightvllm.quantization.calibrate.grid import Grid, restore, round_inputs
from lightvllm.quantization.calibrate.migrate import folds, migrate
from lightvllm.quantization.calibrate.observe import Inputs, observe, run_layer
from lightvllm.quantization.calibrate.report import LayerError, Report
from lightvllm.quantization.calibrate.schemes import GROUP_SIZES, SCHEMES, Scheme, find_scheme

REPORT_FILE = "quantization_report.json"
CPU = torch.device("cpu")


def quantize_checkpoint(
    model: Path,
    out: Path,
    scheme: str,
    *,
    group_size: int = 128,
    sequences: Sequence[Sequence[int]] = (),
    overwrite: bool = False,
    show_progress: bool = False,
) -> Report:
    """Write a quantized copy of a checkpoint folder, as compressed-tensors; the head stays as it is.

    Args:
        out: the folder to make, with a report in `quantization_report.json`.
        scheme: a name in `SCHEMES`.
        group_size: neighbouring inputs that share a scale, in schemes of 4 bits.
        sequences: calibration data, as token ids. Schemes that need none report the errors of outputs if it is given.
        overwrite: replace the folder if it is there.

    Raises:
        ValueError: a checkpoint or an argument that does not work, in words; nothing is written then.
    """
    chosen = find_scheme(scheme)
    config = _check(model, out, chosen, scheme, group_size, sequences)
    with torch.device("meta"):
        whole = model_class(config.architecture)(config)
    _check_layers(whole, chosen, scheme)
    if chosen.is_grouped:
        _check_group_size(whole, group_size)
    weights = open_weights(whole, model)
    grid = Grid(chosen.bits, group_size if chosen.is_grouped else None, torch_dtype("auto", config))
    with CheckpointFolder(out, overwrite) as folder, torch.no_grad():
        walk = _Walk(whole, weights, chosen, grid, folder)
        layers = tuple(walk.run([torch.tensor(sequence) for sequence in sequences], show_progress))
        report = Report(scheme, grid.group_size, sum(map(len, sequences)), walk.bytes_before, walk.bytes_after, layers)
        hf_config = read_json(model / "config.json")
        folder.write_json("config.json", hf_config | {"quantization_config": chosen.quantization_config(group_size)})
        folder.write_json(REPORT_FILE, report.record())
        folder.copy_others(model)
    return report


def _check(
    model: Path, out: Path, chosen: Scheme, scheme: str, group_size: int, sequences: Sequence[Sequence[int]]
) -> ModelConfig:
    if (
        model.is_dir()
        and (model / "config.json").is_file()
        and read_json(model / "config.json").get("quantization_config")
    ):
        raise ValueError(f"model: {str(model)!r} is quantized already; give the checkpoint in full precision")
    config = ModelConfig.from_pretrained(model)
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group_size: {group_size} is not supported, expected one of {list(GROUP_SIZES)}")
    if out.exists() and out.resolve() == model.resolve():
        raise ValueError(f"out: {str(out)!r} is the model itself")
    if chosen.needs_data and not sequences:
        raise ValueError(f"calibration: the scheme {scheme!r} needs text to calibrate with")
    for sequence in sequences:
        if not 1 <= len(sequence) <= config.longest:
            raise ValueError(
                f"calibration: a sequence has {len(sequence)} tokens, expected between 1 and {config.longest:.0f}"
            )
        if not 0 <= min(sequence) <= max(sequence) < config.vocab_size:
            raise ValueError(f"calibration: a token id is outside of the vocabulary, which has {config.vocab_size}")
    return config


def _check_layers(model: CausalLM, chosen: Scheme, scheme: str) -> None:
    if chosen.migrates and model.layer_class is not DecoderLayer:  # `folds` knows no others
        others = [name for name, other in SCHEMES.items() if not other.migrates]
        raise ValueError(
            f"scheme: {scheme!r} moves scales into the norms before the products, and does not know the layers of "
            f"{model.config.architecture}; expected one of {others}"
        )


def _check_group_size(model: CausalLM, group_size: int) -> None:
    for name, linear in _linears(model.model):
        assert linear.weight is not None
        inputs = linear.weight.shape[1]
        if inputs % group_size:
            fitting = [size for size in GROUP_SIZES if inputs % size == 0]
            hint = f"; of these fit {fitting}" if fitting else ", and neither do the others"
            raise ValueError(f"group_size: {group_size} does not divide the {inputs} inputs of model.{name}{hint}")


def _linears(module: nn.Module) -> list[tuple[str, Linear]]:
    """The linear layers in it by name, in the order in which they are run, which is the one they are made in."""
    return [(name, linear) for name, linear in module.named_modules() if isinstance(linear, Linear)]


@dataclass
class _Simulated:
    """The product with a rounded weight, in float32: a `Product`."""

    weight: Tensor
    rounds_inputs: bool

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(round_inputs(x) if self.rounds_inputs else x, self.weight, bias)


class _Walk:
    def __init__(
        self, model: CausalLM, weights: LazyWeights, scheme: Scheme, grid: Grid, folder: CheckpointFolder
    ) -> None:
        self.model = model
        self.weights = weights
        self.scheme = scheme
        self.grid = grid
        self.folder = folder
        self.bytes_before = 0
        self.bytes_after = 0

    def run(self, sequences: Sequence[Tensor], show_progress: bool) -> Iterator[LayerError]:
        """Write all tensors; the error of each linear layer in order. sequences: each [seq_len] int64"""
        for name in self.weights.sources:
            if name.startswith("model.layers."):
                continue
            data = self.weights.read(name, self.grid.dtype, CPU)
            self._write(self._parts(name, data), num_bytes(data))
        hidden: list[Tensor] = []
        if sequences:
            embedding = self.weights.read("model.embed_tokens.weight", self.grid.dtype, CPU)
            hidden = [F.embedding(sequence, embedding).float() for sequence in sequences]
        steps = tqdm(list(enumerate(self.model.model.layers)), desc="Quantized layers", disable=not show_progress)
        for index, layer in steps:
            assert isinstance(layer, DecoderLayer)
            self._load(layer, f"model.layers.{index}.")
            if self.scheme.migrates:
                self._migrate(layer, hidden)
            yield from self._round(layer, f"model.layers.{index}.", hidden)
            hidden = [run_layer(layer, x, self.model.model.rotary) for x in hidden]
            layer.to_empty(device="meta")
            for _, linear in _linears(layer):
                linear.product = None

    def _load(self, layer: DecoderLayer, prefix: str) -> None:
        for name, _ in list(layer.named_parameters()):
            # A copy: what needs no converting is the file itself, which is not to be written to.
            data = self.weights.read(prefix + name, torch.float32, CPU).clone()
            if not data.isfinite().all():
                raise ValueError(f"model: {prefix}{name} has values that are not finite")
            module_name, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(module_name), leaf, nn.Parameter(data, requires_grad=False))

    def _migrate(self, layer: DecoderLayer, hidden: Sequence[Tensor]) -> None:
        linears = [linear for _, linear in _linears(layer)]
        inputs = observe(layer, linears, hidden, self.model.model.rotary)
        for fold in folds(layer, self.grid.dtype):
            migrate(fold, inputs[linears.index(fold.linear)], self.grid, self.scheme.rounds_inputs)

    def _round(self, layer: DecoderLayer, prefix: str, hidden: Sequence[Tensor]) -> Iterator[LayerError]:
        """Round the layer's linear layers one after the other, and write all of its tensors."""
        for name, linear in _linears(layer):
            seen = None
            if hidden:
                [seen] = observe(layer, [linear], hidden, self.model.model.rotary, self.scheme.compensates)
            yield from self._round_linear(prefix + name, linear, seen)
        for name, parameter in layer.named_parameters():
            data = parameter.to(self.grid.dtype)
            self._write(self._parts(prefix + name, data), num_bytes(data))

    def _round_linear(self, name: str, linear: Linear, seen: Inputs | None) -> Iterator[LayerError]:
        assert linear.weight is not None
        weight = linear.weight.detach()
        scales = self.grid.scales(weight)
        if self.scheme.fits_scales:
            assert seen is not None
            scales = self.grid.fitted_scales(weight, seen.rows.square().mean(dim=0))
        values = self.grid.round(weight, scales)
        if self.scheme.compensates:
            assert seen is not None
            assert seen.hessian is not None
            values = compensated_rounding(weight, scales, seen.hessian, self.grid)
        source = self.weights.sources[f"{name}.weight"]
        rounded = restore(values, scales)
        linear.product, linear.weight = _Simulated(rounded, self.scheme.rounds_inputs), None
        wanted = found = None
        if seen is not None:
            wanted, found = seen.rows @ weight.T, linear.product(seen.rows, None)
        start = 0
        for part, size in zip(source.names, source.sizes, strict=True):
            rows = slice(start, start + size)
            start += size
            module = part.removesuffix(".weight")
            stored = scales[rows].to(self.grid.dtype)
            before = size * weight.shape[1] * self.grid.dtype.itemsize
            self._write(quantized_tensors(module, values[rows], stored, self.grid.bits), before)
            output_error = None
            if wanted is not None and found is not None:
                output_error = _relative(found[:, rows], wanted[:, rows])
            yield LayerError(module, _relative(rounded[rows], weight[rows]), output_error)

    def _parts(self, name: str, data: Tensor) -> dict[str, Tensor]:
        source = self.weights.sources[name]
        return dict(zip(source.names, data.split(list(source.sizes)), strict=True))

    def _write(self, tensors: dict[str, Tensor], bytes_before: int) -> None:
        self.folder.add(tensors)
        self.bytes_before += bytes_before
        self.bytes_after += sum(map(num_bytes, tensors.values()))


def _relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-38)).item()
