"""Training: packing changes nothing, the loss falls, resuming gives the same weights, two processes one step."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lightvllm.model_config import ModelConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.training.__main__ import main
from lightvllm.training.batches import collate, epoch_order, packed_positions
from lightvllm.training.dataset import PackedDataset, pack, texts, write_dataset
from lightvllm.training.packed_attention import PackedAttention
from lightvllm.training.tokenizer import save_tokenizer, train_tokenizer
from lightvllm.training.trainer import (
    PackedLoss,
    TrainConfig,
    Trainer,
    exact_answers,
    learning_rate,
    load_checkpoint,
    plot_loss,
)

VOCAB = 600


def tiny_model(vocab_size: int = VOCAB) -> ModelConfig:
    return ModelConfig("Qwen3ForCausalLM", vocab_size, 32, 48, 2, 2, 1, 32, 1024, layer_windows=(None, None),
                       tie_word_embeddings=True)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_tokenizer(train_tokenizer(texts("train", 1, 20, 5), VOCAB), folder / "tokenizer", 1024)
    write_dataset(folder / "train", folder / "tokenizer" / "tokenizer.json", "train", 1, 24, 4, processes=1)
    return folder


@pytest.fixture
def dataset(data: Path) -> PackedDataset:
    return PackedDataset.open(data / "train")


def config(**changes: object) -> TrainConfig:
    settings = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "autocast": False, "checkpoint_every": 100}
    return TrainConfig(**{**settings, **changes})  # type: ignore[arg-type]


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def test_packing_equals_separate_samples(dataset: PackedDataset) -> None:
    model = LightvLLM.from_config(tiny_model())
    indices = np.array([2, 5, 7])
    batch = collate(dataset, indices)
    with torch.no_grad():
        packed = model.model.compute_logits(model.model(batch.tokens, batch.positions, PackedAttention(batch.layouts)))
        start = 0
        for index in indices:
            tokens, segments, _ = dataset.sequence(int(index))
            assert segments.max() >= 2
            for branch in range(1, int(segments.max()) + 1):
                alone = np.flatnonzero((segments == 0) | (segments == branch))
                logits = model(torch.from_numpy(tokens[alone].astype(np.int64))[None]).logits[0]
                torch.testing.assert_close(packed[start + alone], logits, atol=1e-5, rtol=1e-5)
            start += len(tokens)


def test_one_masked_call_gives_what_the_parts_give(dataset: PackedDataset) -> None:
    loss = PackedLoss(LightvLLM.from_config(tiny_model()))
    indices = np.array([2, 5, 7])
    packed, padded = (collate(dataset, indices, gap_seed=1, padded=padded) for padded in (False, True))
    assert len(padded.tokens) > len(packed.tokens)
    for with_context in (False, True):
        torch.testing.assert_close(loss(packed, with_context), loss(padded, with_context), atol=0.0, rtol=1e-5)
    assert loss(packed, True)[0] > loss(packed, False)[0]


def test_positions_restart_after_the_schema() -> None:
    assert packed_positions(np.array([0, 0, 0, 1, 1, 2, 2, 2], np.uint8)).tolist() == [0, 1, 2, 3, 4, 3, 4, 5]


def test_labels_are_the_next_token_of_the_same_branch(data: Path, dataset: PackedDataset) -> None:
    tokenizer = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json"))
    tokens, segments, targets = pack(
        tokenizer, "t: a int", [("How many?", "SELECT COUNT(*) FROM t"), ("a?", "SELECT a FROM t")]
    )
    answers = [token for token, target in zip(tokens, targets, strict=True) if target]
    assert (
        tokenizer.decode(answers, skip_special_tokens=False)
        == "SELECT COUNT(*) FROM t<|im_end|>SELECT a FROM t<|im_end|>"
    )
    assert sorted(set(segments)) == [0, 1, 2]
    batch = collate(dataset, np.array([0]))
    ids, parts, wanted = dataset.sequence(0)
    assert batch.answers.sum() == wanted.sum()
    for place in range(len(ids) - 1):
        same = parts[place] == parts[place + 1]
        assert batch.labels[place] == (int(ids[place + 1]) if same else -100)


def test_gaps_stretch_positions_and_keep_their_order(dataset: PackedDataset) -> None:
    plain = collate(dataset, np.arange(12))
    gaps = collate(dataset, np.arange(12), gap_seed=0)
    stretched = gaps.positions - plain.positions
    assert stretched.max() > 50
    assert (stretched >= 0).all()
    assert torch.equal(plain.tokens, gaps.tokens)


def test_an_epoch_has_every_sequence_once(dataset: PackedDataset) -> None:
    order = np.concatenate(epoch_order(dataset, 4, seed=1, epoch=0))
    assert sorted(order.tolist()) == list(range(24))
    assert not np.array_equal(order, np.concatenate(epoch_order(dataset, 4, seed=1, epoch=1)))


def test_the_dataset_does_not_depend_on_the_processes(data: Path, tmp_path: Path) -> None:
    tokenizer = data / "tokenizer" / "tokenizer.json"
    again = write_dataset(tmp_path, tokenizer, "train", 1, 24, 4, processes=2)
    assert np.array_equal(again.tokens, PackedDataset.open(data / "train").tokens)


def test_a_missing_dataset_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokens\.npy; make it with"):
        PackedDataset.open(tmp_path)


def test_training_lowers_the_loss(dataset: PackedDataset, tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), config(steps=60, learning_rate=5e-3), dataset, tmp_path)
    trainer.run()
    losses = [loss for _, loss, _ in trainer.log]
    assert losses[0] > 6
    assert np.mean(losses[-6:]) < 0.8 * losses[0]
    plot_loss(trainer.log, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 5000
    assert 0 <= exact_answers(trainer.model, dataset) <= 1
    assert (tmp_path / "log.csv").read_text().startswith("step,loss,gradient_norm\n0,")


def test_autocast_trains_too(dataset: PackedDataset, tmp_path: Path) -> None:
    trainer = Trainer(tiny_model(), config(autocast=True, steps=12, learning_rate=5e-3), dataset, tmp_path)
    trainer.run()
    assert trainer.log[-1][1] < trainer.log[0][1]


def test_resuming_gives_the_weights_of_an_uninterrupted_run(dataset: PackedDataset, tmp_path: Path) -> None:
    whole = Trainer(tiny_model(), config(steps=9), dataset, tmp_path / "whole")
    whole.run()
    first = Trainer(tiny_model(), config(steps=9), dataset, tmp_path / "parts")
    assert not first.resume()
    first.run(until=4)
    second = Trainer(tiny_model(), config(steps=9), dataset, tmp_path / "parts")
    assert second.resume()
    assert second.step == 4
    second.run()
    assert torch.equal(weights(whole), weights(second))
    assert second.log == whole.log
    loaded = load_checkpoint(tmp_path / "parts", tiny_model())
    assert all(map(torch.equal, loaded.parameters(), whole.model.parameters()))


def test_a_run_with_other_settings_is_not_resumed(dataset: PackedDataset, tmp_path: Path) -> None:
    Trainer(tiny_model(), config(), dataset, tmp_path).run(until=1)
    with pytest.raises(ValueError, match="other settings"):
        Trainer(tiny_model(), config(learning_rate=1.0), dataset, tmp_path).resume()
    with pytest.raises(ValueError, match=r"no checkpoint\.pt; train first"):
        load_checkpoint(tmp_path / "nowhere", tiny_model())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an accelerator")
def test_a_recipe_for_an_accelerator_says_so_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--recipe small does with a processor"):
        main(["train", "--run", str(tmp_path)])


def test_settings_are_checked(dataset: PackedDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps: is 0"):
        config(steps=0)
    with pytest.raises(ValueError, match="batch_size: is 99, the dataset has 24 sequences"):
        Trainer(tiny_model(), config(batch_size=99), dataset, tmp_path).run()


def test_the_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    settings = config(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate(settings, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


STEP = """
import sys
from pathlib import Path
import torch
from lightvllm.training.dataset import PackedDataset
from lightvllm.training.trainer import Trainer
from tests.training.test_trainer import config, tiny_model, weights
trainer = Trainer(tiny_model(), config(), PackedDataset.open(Path(sys.argv[1])), Path(sys.argv[2]))
trainer.run(until=2)
if trainer.rank == 0:
    torch.save(weights(trainer), sys.argv[3])
trainer.close()
"""


def test_two_processes_take_the_step_of_one(data: Path, dataset: PackedDataset, tmp_path: Path) -> None:
    script = tmp_path / "step.py"
    script.write_text(STEP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
               str(data / "train"), str(tmp_path / "run"), str(tmp_path / "weights.pt")]  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=root, env=_environment(root))
    assert done.returncode == 0, done.stderr
    alone = Trainer(tiny_model(), config(), dataset, tmp_path / "alone")
    alone.run(until=2)
    # A weight moves by up to the learning rate, 1e-3, a step; Adam blows up rounding where a gradient is next to zero.
    torch.testing.assert_close(torch.load(tmp_path / "weights.pt"), weights(alone), atol=5e-5, rtol=0)


def _environment(root: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
