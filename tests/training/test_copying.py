"""The first two layers start with a circuit that copies, and a short drill makes it hold."""

import torch

from lightvllm.attention.base import AttentionLayer
from lightvllm.model_config import ModelConfig, RopeConfig
from lightvllm.models.bare import LightvLLM
from lightvllm.training.copying import drill_copying, initialize_copying

CONFIG = ModelConfig("Qwen3ForCausalLM", 128, 128, 64, 2, 4, 2, 32, 1024, rope=RopeConfig(theta=1e6),
                     layer_windows=(None, None), tie_word_embeddings=True)  # fmt: skip


class Watcher:
    """Dense causal attention over one sequence that keeps the weights of every layer's heads."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []  # [num_heads, length, length] a layer

    def attend(
        self, layer: AttentionLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        groups = layer.num_heads // layer.num_kv_heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", query, key) * layer.scale
        future = torch.ones(len(query), len(query), dtype=torch.bool).triu(1)
        self.weights.append(scores.masked_fill(future, float("-inf")).softmax(-1))
        return torch.einsum("hqk,khd->qhd", self.weights[-1], value).flatten(1)


def test_the_first_layer_looks_back_one_and_the_second_finds_the_successor() -> None:
    model = LightvLLM.from_config(CONFIG).model
    initialize_copying(model, torch.Generator().manual_seed(0))
    said = torch.randperm(128, generator=torch.Generator().manual_seed(1))[:60]
    watcher = Watcher()
    with torch.no_grad():
        model(said.repeat(2), torch.arange(120), watcher)
    first, second = watcher.weights[0][0], watcher.weights[1][0]
    places = torch.arange(1, 120)
    assert first[places, places - 1].min() > 0.8
    places = torch.arange(60, 119)  # the token said before was followed by the one that is wanted next
    assert second[places, places - 59].mean() > 10 / 60


def test_a_drill_teaches_copying_where_a_random_start_learns_nothing() -> None:
    random_start = drill_copying(LightvLLM.from_config(CONFIG).model, 60, autocast=False, seed=3)
    model = LightvLLM.from_config(CONFIG).model
    initialize_copying(model, torch.Generator().manual_seed(0))
    circuit = drill_copying(model, 60, autocast=False, seed=3)
    assert random_start < 0.2
    assert circuit > 0.6
