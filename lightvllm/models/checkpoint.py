"""Between a Hugging Face checkpoint's tensors and a model's parameters, which fuse some of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightvllm.layers.linear import Linear
from lightvllm.model_config import read_json
from lightvllm.models.decoder import CausalLM
from lightvllm.models.quantized import Part, load_layer, quantized_layers
from lightvllm.quantization.format import Expected, StoredTensor


@dataclass(frozen=True)
class Source:
    """The checkpoint tensors that make up one parameter, in order along the first dimension."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class LazyWeights:
    """A model's parameters, read from its checkpoint when they are asked for.

    Attributes:
        sources: parameter name -> the checkpoint tensors it is made of.
        quantized: layer name -> what its quantized weight is made of.
        tensors: all that the checkpoint has.
    """

    sources: dict[str, Source]
    quantized: dict[str, list[Part]]
    tensors: dict[str, StoredTensor]

    def read(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One parameter; used where it lies in the file if it needs neither fusing nor converting."""
        source = self.sources[name]
        if len(source.names) == 1:
            return self.tensors[source.names[0]][:].to(device, dtype)
        trailing = self.tensors[source.names[0]].get_shape()[1:]
        data = torch.empty((sum(source.sizes), *trailing), dtype=dtype, device=device)
        for part, part_name in zip(data.split(list(source.sizes)), source.names, strict=True):
            part.copy_(self.tensors[part_name][:])
        return data


def parameter_sources(model: CausalLM) -> dict[str, Source]:
    """Parameter name -> the checkpoint tensors it is made of."""
    sources = {}
    for name, parameter in model.named_parameters():
        module_name, _, leaf = name.rpartition(".")
        parent, _, layer = module_name.rpartition(".")
        parts = model.fused_parameters.get(layer)
        if parts is None:
            sources[name] = Source((name,), (parameter.shape[0],))
        else:
            module = model.get_submodule(module_name)
            assert isinstance(module, Linear)
            sources[name] = Source(tuple(f"{parent}.{part}.{leaf}" for part in parts), tuple(module.out_features))
    return sources


def hf_state_dict(model: CausalLM) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names, fused ones taken apart: what a checkpoint file holds.

    Raises:
        ValueError: the model came from a quantized checkpoint, so it has not all its weights.
    """
    if model.config.quantization is not None:
        method = model.config.quantization["quant_method"]
        raise ValueError(f"the model came from a quantized checkpoint ({method}): it has no plain weights to give")
    parameters = dict(model.named_parameters())
    return {
        name: part.detach().contiguous()
        for parameter, source in parameter_sources(model).items()
        for name, part in zip(source.names, parameters[parameter].split(list(source.sizes)), strict=True)
    }


def load_weights(
    model: CausalLM,
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    pack: Callable[[Linear], None] = lambda layer: None,
) -> None:
    """Give a model built on the meta device the weights of a checkpoint folder.

    Files are memory-mapped: a tensor that needs neither fusing nor converting is used where it lies, and of quantized
    layers no more than one is unpacked at a time.

    Args:
        pack: called with each layer once it has its weight.

    Raises:
        ValueError: see `open_weights`; quantized tensors that contradict each other.
    """
    weights = open_weights(model, path)
    for name in weights.sources:
        module_name, _, leaf = name.rpartition(".")
        module = model.get_submodule(module_name)
        setattr(module, leaf, nn.Parameter(weights.read(name, dtype, device), requires_grad=False))
        if isinstance(module, Linear) and leaf == "weight":
            pack(module)
    for name, parts in weights.quantized.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Linear)
        load_layer(layer, parts, weights.tensors, dtype, device)
        pack(layer)
    if "lm_head" not in weights.quantized:
        model.tie_weights()


def open_weights(model: CausalLM, path: Path) -> LazyWeights:
    """The weights of a checkpoint folder for a model built on the meta device.

    Raises:
        ValueError: a quantization we cannot honour; no weights, or tensors missing, unknown or of a wrong shape or type
            (one error that names them).
    """
    tensors = _open_tensors(path)
    sources = parameter_sources(model)
    quantized = quantized_layers(model, tensors)
    for name in quantized:
        sources.pop(f"{name}.weight", None)  # a head that is tied by config.json, but has a weight, is not among them
    weights = LazyWeights(sources, quantized, tensors)
    _check(model, weights, path)
    return weights


def _weight_files(path: Path) -> list[Path]:
    """model.safetensors, else the files that the index names, else all there are; as transformers chooses.

    There may be more that must not be read: the weights again under other names, as Mistral ships them, or an adapter.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index}: expected a weight_map from tensors to files, found {weight_map!r:.80}")
    files = [path / name for name in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"model: {str(path)!r} misses files that {index.name} names: {', '.join(missing)}")
    return files


def _open_tensors(path: Path) -> dict[str, StoredTensor]:
    files = _weight_files(path)
    if not files:
        raise ValueError(f"model: {str(path)!r} has no *.safetensors file")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"model: {file} is not a readable safetensors file ({error})") from None
        tensors |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    return tensors


def _check(model: CausalLM, weights: LazyWeights, path: Path) -> None:
    tensors = weights.tensors
    expected: dict[str, Expected] = {}
    for name, source in weights.sources.items():
        trailing = model.get_parameter(name).shape[1:]
        expected |= {
            part: Expected(((size, *trailing),)) for part, size in zip(source.names, source.sizes, strict=True)
        }
    quantized = [part for parts in weights.quantized.values() for part in parts]
    for part in quantized:
        expected |= part.tensors()
    unknown = tensors.keys() - expected.keys() - _superfluous(model, quantized, tensors)
    problems = [
        f"missing {name}" for name in sorted(expected.keys() - tensors.keys()) if not expected[name].is_optional
    ]
    problems += [f"unexpected {name}" for name in sorted(unknown)]
    for name in sorted(expected.keys() & tensors.keys()):
        problem = expected[name].problem(tensors[name])
        if problem is not None:
            problems.append(f"{name} {problem}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"model: the weights in {str(path)!r} do not fit {type(model).__name__}: {shown}")


def _superfluous(model: CausalLM, quantized: list[Part], tensors: dict[str, StoredTensor]) -> set[str]:
    """What some exporters write although it follows from the rest or says nothing."""
    found = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if model.config.tie_word_embeddings:
        found.add("lm_head.weight")
    biases = {f"{part.name}.bias" for part in quantized} & tensors.keys()  # old AutoGPTQ gives one to every layer
    return found | {name for name in biases if not tensors[name][...].any()}
