"""A folder is there when it is complete, and not before; 4-bit values lie as the format says."""

import json
from pathlib import Path

import pytest
import torch

from lightvllm.quantization.calibrate import folder as folder_module
from lightvllm.quantization.calibrate.folder import CheckpointFolder, pack_nibbles, quantized_tensors
from tests.quantization.calibrate.folders import fast_unpack, read_tensors, unpack


def write(path: Path, overwrite: bool = False, **tensors: torch.Tensor) -> None:
    with CheckpointFolder(path, overwrite) as folder:
        for name, tensor in tensors.items():
            folder.add({name: tensor})
        folder.write_json("config.json", {"names": list(tensors)})


def interrupted(path: Path, overwrite: bool = False) -> None:
    with CheckpointFolder(path, overwrite) as folder:
        folder.add({"b": torch.ones(3)})
        folder.write_json("config.json", {})
        raise KeyboardInterrupt


def test_eight_values_lie_in_an_integer() -> None:
    [[packed]] = pack_nibbles(torch.tensor([[-8, -7, -6, -5, 4, 5, 6, 7]], dtype=torch.int8)).tolist()
    assert packed & 0xFFFFFFFF == 0xFEDC3210


def test_packing_against_the_definition() -> None:
    values = torch.randint(-8, 8, (5, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    assert unpack(pack_nibbles(values), [5, 64]).tolist() == values.tolist()
    assert fast_unpack(pack_nibbles(values), [5, 64]).tolist() == values.tolist()


def test_names_of_the_two_formats() -> None:
    values, scales = torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 1)
    assert quantized_tensors("a.b", values, scales, 8).keys() == {"a.b.weight", "a.b.weight_scale"}
    packed = quantized_tensors("a.b", values, scales, 4)
    assert packed.keys() == {"a.b.weight_packed", "a.b.weight_scale", "a.b.weight_shape"}
    assert packed["a.b.weight_shape"].tolist() == [4, 32]
    assert packed["a.b.weight_packed"].dtype == torch.int32


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    with CheckpointFolder(tmp_path / "out") as folder:
        folder.add({"a": torch.ones(3)})
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_tensors(tmp_path / "out")["a"].tolist() == [1, 1, 1]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_leaves_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "out", a=torch.ones(1))
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "out", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_tensors(tmp_path / "out").keys() == {"a"}


def test_overwriting_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "out", a=torch.ones(1))
    with pytest.raises(ValueError, match="is there already; overwrite replaces it"):
        CheckpointFolder(tmp_path / "out")
    write(tmp_path / "out", overwrite=True, b=torch.ones(1))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert read_tensors(tmp_path / "out").keys() == {"b"}


def test_only_checkpoints_are_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(ValueError, match="it is no checkpoint folder to overwrite"):
        CheckpointFolder(tmp_path / "precious", overwrite=True)
    with pytest.raises(ValueError, match="out: there is no folder"):
        CheckpointFolder(tmp_path / "nowhere" / "out")


def test_large_checkpoints_are_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 100)
    tensors = {f"t{i}": torch.full((20,), float(i)) for i in range(3)}
    write(tmp_path / "out", **tensors)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * 80
    assert index["weight_map"] == {f"t{i}": f"model-0000{i + 1}-of-00003.safetensors" for i in range(3)}
    for name, tensor in read_tensors(tmp_path / "out").items():
        assert tensor.tolist() == tensors[name].tolist()


def test_other_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    for name in ("tokenizer.json", "config.json", "pytorch_model.bin", "model-00001-of-00001.safetensors",
                 "model.safetensors.index.json"):  # fmt: skip
        (source / name).write_text(name)
    with CheckpointFolder(tmp_path / "out") as folder:
        folder.add({"a": torch.ones(1)})
        folder.write_json("config.json", {"new": True})
        folder.copy_others(source)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "tokenizer.json",
        "config.json",
        "model.safetensors",
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"new": True}
