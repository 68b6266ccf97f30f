"""Between a Hugging Face checkpoint's tensors and a model's parameters, which fuse some of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightvllm.layers.linear import Linear
from lightvllm.model_config import read_json
from lightvllm.models.decoder import CausalLM


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
    """

    sources: dict[str, Source]
    tensors: dict

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
    """The model's weights under Hugging Face's names, fused ones taken apart: what a checkpoint file holds."""
    parameters = dict(model.named_parameters())
    return {
        name: part.detach().contiguous()
        for parameter, source in parameter_sources(model).items()
        for name, part in zip(source.names, parameters[parameter].split(list(source.sizes)), strict=True)
    }


def load_weights(model: CausalLM, path: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Give a model built on the meta device the weights of a checkpoint folder.

    Files are memory-mapped: a tensor that needs neither fusing nor converting is used where it lies.

    Raises:
        ValueError: no weights, or tensors missing, unknown or of a wrong shape (one error that names them).
    """
    weights = open_weights(model, path)
    for name in weights.sources:
        module_name, _, leaf = name.rpartition(".")
        data = weights.read(name, dtype, device)
        setattr(model.get_submodule(module_name), leaf, nn.Parameter(data, requires_grad=False))
    model.tie_weights()


def open_weights(model: CausalLM, path: Path) -> "LazyWeights":
    """The weights of a checkpoint folder for a model built on the meta device.

    Raises:
        ValueError: no weights, or tensors missing, unknown or of a wrong shape (one error that names them).
    """
    sources, tensors = parameter_sources(model), _open_tensors(path)
    _check(model, sources, tensors, path)
    return LazyWeights(sources, tensors)


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


def _open_tensors(path: Path) -> dict:
    files = _weight_files(path)
    if not files:
        raise ValueError(f"model: {str(path)!r} has no *.safetensors file")
    tensors: dict = {}
    for file in files:
        try:
            handle = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"model: {file} is not a readable safetensors file ({error})") from None
        tensors |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 - not a dict
    return tensors


def _check(model: CausalLM, sources: dict[str, Source], tensors: dict, path: Path) -> None:
    expected: dict[str, list[int]] = {}
    for name, source in sources.items():
        trailing = model.get_parameter(name).shape[1:]
        expected |= {part: [size, *trailing] for part, size in zip(source.names, source.sizes, strict=True)}
    # Some exporters write the tied head and the rotary buffer although both follow from the rest.
    ignored = {
        n
        for n in tensors
        if n.endswith("rotary_emb.inv_freq") or (n == "lm_head.weight" and model.config.tie_word_embeddings)
    }
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys() - ignored)]
    for name in sorted(expected.keys() & tensors.keys()):
        shape = list(tensors[name].get_shape())
        if shape != expected[name]:
            problems.append(f"{name} has shape {shape}, expected {expected[name]}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"model: the weights in {str(path)!r} do not fit {type(model).__name__}: {shown}")
