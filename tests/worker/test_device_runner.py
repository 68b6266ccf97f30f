"""The runner of a GPU, on the CPU: all of it but the graphs' capture runs there, over a backend that calls our CPU op.

The compiled CPU kernels are bitwise invariant, so whatever the runner pads, reorders or leaves on the device, tokens
and log-probabilities must be those of the host's runner, bit for bit.
"""

import random
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightvllm import LLM, SamplingParams, kernels
from lightvllm.attention.base import AttentionLayer
from lightvllm.attention.flash import FlashAttention
from lightvllm.attention.paged import DeviceAttention, DeviceBatch, LayerCache
from lightvllm.bench.internals import worker_of
from lightvllm.engine.step import PendingOutput, StepInput
from lightvllm.errors import DeviceLost
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.worker import device_runner, worker
from lightvllm.worker.cuda_graph import DecodeGraphs, Sampling, graph_sizes
from lightvllm.worker.device_runner import NOT_FINITE, DeviceRunner
from tests.e2e.checkpoint import VOCAB_SIZE, Checkpoint

OPTIONS = {"max_model_len": 128, "skip_tokenizer_init": True, "device": "cpu"}


class OnDevice(DeviceAttention):
    """Checks what it is given, and attends through the op."""

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        batch = self.batch
        query_lens = batch.query_starts.diff().long()
        assert int(batch.query_starts[-1]) == len(query) == len(batch.slots)
        assert (query_lens[: batch.num_decodes] == 1).all()
        chunks = query_lens[batch.num_decodes :]
        assert batch.max_query_len == (int(chunks.max()) if len(chunks) else 0)
        assert (chunks > 1).all()
        assert int(batch.seq_lens.max()) <= batch.max_seq_len
        return kernels.paged_attention(
            query,
            *(cache.key, cache.value, batch.block_table.contiguous(), query_lens, batch.seq_lens.long()),
            *(layer.scale, layer.sliding_window or 0),
        )


@pytest.fixture
def make_device_llm(make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> Callable[..., LLM]:
    """`make_llm` with the runner of a GPU."""
    if not kernels.COMPILED:
        pytest.skip("the CPU kernels were not built")

    def make(path: object, **options: object) -> LLM:
        with monkeypatch.context() as patch:
            patch.setattr(worker, "attention_backend", lambda *_, **__: OnDevice)
            llm = make_llm(path, **{**OPTIONS, **options})
        assert isinstance(worker_of(llm).runner, DeviceRunner)
        return llm

    return make


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 60)) for _ in range(count)]


def tokens(outputs: list) -> list[list[list[int]]]:
    return [[completion.token_ids for completion in output.outputs] for output in outputs]


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["padded", "eager"])
@pytest.mark.parametrize("async_scheduling", [False, True], ids=["", "ahead"])
@pytest.mark.parametrize("max_num_batched_tokens", [24, 4096])
def test_greedy_and_with_log_probabilities(
    enforce_eager: bool,
    async_scheduling: bool,
    max_num_batched_tokens: int,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    make_device_llm: Callable[..., LLM],
) -> None:
    path, prompts = checkpoint("qwen3").path, random_prompts(7)
    rng = random.Random(1)
    params = [
        SamplingParams(
            temperature=0, max_tokens=rng.randint(1, 12), ignore_eos=True, logprobs=rng.choice([None, None, 2])
        )
        for _ in prompts
    ]
    options = {"enforce_eager": enforce_eager, "async_scheduling": async_scheduling, "max_num_seqs": 5}
    llm = make_device_llm(path, max_num_batched_tokens=max_num_batched_tokens, **options)
    assert llm.engine.core.runs_ahead == async_scheduling
    expected = make_llm(path, **OPTIONS).generate(prompts, params, use_tqdm=False)
    for _ in range(2):  # the second time, prefixes are in the cache
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert tokens(outputs) == tokens(expected)
        for mine, theirs in zip(outputs, expected, strict=True):
            assert mine.outputs[0].logprobs == theirs.outputs[0].logprobs
            assert mine.outputs[0].finish_reason == theirs.outputs[0].finish_reason


@pytest.mark.parametrize("asked", [{}, {"logprobs": 1}, {"prompt_logprobs": 1}], ids=str)
def test_single_tokens_amid_prompts(
    asked: dict[str, int],
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    make_device_llm: Callable[..., LLM],
) -> None:
    """They look like decodes, but nothing is sampled behind them."""
    path, prompts = checkpoint("qwen3").path, random_prompts(6)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, **asked)
    llm = make_device_llm(path, long_prefill_token_threshold=1)
    expected = make_llm(path, **OPTIONS).generate(prompts, params, use_tqdm=False)
    for _ in range(2):
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert tokens(outputs) == tokens(expected)
        assert [output.prompt_logprobs for output in outputs] == [output.prompt_logprobs for output in expected]


def test_random_draws(
    checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM], make_device_llm: Callable[..., LLM]
) -> None:
    path, prompts = checkpoint("qwen3").path, random_prompts(6)
    params = [
        SamplingParams(
            temperature=0.0 if i == 2 else 1.3,
            top_p=0.9,
            top_k=20 * (i % 2),
            min_p=0.05 * (i == 3),
            seed=i,
            max_tokens=9,
        )
        for i in range(6)
    ]
    llm = make_device_llm(path)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert tokens(outputs) == tokens(make_llm(path, **OPTIONS).generate(prompts, params, use_tqdm=False))


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.4, "frequency_penalty": 0.5},
        {"prompt_logprobs": 1},
        {"structured_outputs": StructuredOutputsParams(regex="[0-9]{3}")},
        {"n": 3, "temperature": 1.0},
    ],
)
def test_what_is_sampled_on_the_host_beside_what_is_not(
    params: dict,
    text_checkpoint: Checkpoint,
    make_llm: Callable[..., LLM],
    make_device_llm: Callable[..., LLM],
) -> None:
    options = {"skip_tokenizer_init": False}
    prompts = ["one two", "three", "a longer prompt of some words"]
    wanted = [
        SamplingParams(temperature=0, max_tokens=12),
        SamplingParams(**{"temperature": 0, "max_tokens": 5, "seed": 3, **params}),
        SamplingParams(temperature=0.8, seed=5, max_tokens=12),
    ]
    outputs = make_device_llm(text_checkpoint.path, **options).generate(prompts, wanted, use_tqdm=False)
    expected = make_llm(text_checkpoint.path, **{**OPTIONS, **options}).generate(prompts, wanted, use_tqdm=False)
    assert tokens(outputs) == tokens(expected)
    assert [output.prompt_logprobs for output in outputs] == [output.prompt_logprobs for output in expected]


def test_a_small_cache_preempts_and_gives_the_same(
    checkpoint: Callable[[str], Checkpoint], make_llm: Callable[..., LLM], make_device_llm: Callable[..., LLM]
) -> None:
    path, prompts = checkpoint("qwen3").path, random_prompts(6)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    plain = make_llm(path, **OPTIONS)
    small = make_device_llm(path, kv_cache_memory_bytes=9 * plain.engine.core.executor.plan.block_bytes)
    assert tokens(small.generate(prompts, params, use_tqdm=False)) == tokens(
        plain.generate(prompts, params, use_tqdm=False)
    )
    assert small.get_metrics().num_preemptions > 0


@pytest.mark.parametrize("where", ["hidden", "logits"])
def test_what_is_not_finite_ends_its_request_alone(
    where: str, checkpoint: Callable[[str], Checkpoint], make_device_llm: Callable[..., LLM]
) -> None:
    """A token whose embedding is NaN, or one after which the logits are."""
    llm = make_device_llm(checkpoint("qwen3").path)
    model = worker_of(llm).runner.model
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    healthy = llm.generate(prompts, params, use_tqdm=False)
    if where == "hidden":
        model.model.embed_tokens.weight.data[6] = float("nan")
        message = "the model's hidden states contain NaN or infinity"
    else:
        original = model.compute_logits
        model.compute_logits = lambda hidden: original(hidden).index_fill(0, torch.tensor([len(hidden) - 1]), torch.nan)
        message = NOT_FINITE
    llm.reset_prefix_cache()
    outputs = llm.generate(prompts if where == "hidden" else prompts[1:], params, use_tqdm=False)
    assert outputs[-1].outputs[0].finish_reason == "error"
    assert outputs[-1].outputs[0].stop_reason == message
    if where == "hidden":
        assert tokens(outputs[:1]) == tokens(healthy[:1])


class Unread(DeviceAttention):
    """Attends through the op, with nothing that a GPU would have to be waited for."""

    def _attend(self, layer: AttentionLayer, cache: LayerCache, query: Tensor) -> Tensor:
        batch = self.batch
        query_lens, seq_lens = batch.query_starts.diff().long(), batch.seq_lens.long()
        table, window = batch.block_table.contiguous(), layer.sliding_window or 0
        return kernels.paged_attention(query, cache.key, cache.value, table, query_lens, seq_lens, layer.scale, window)


class NothingIsRead(TorchDispatchMode):
    """Refuses what gives the host a value, or a shape that depends on values: on a GPU each waits for all before it."""

    WAITING = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "argwhere", "masked_select", "equal", "_unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        assert func._schema.name.removeprefix("aten::") not in self.WAITING, f"{func} waits for the device"
        masks = [x for x in args[1] if x is not None] if func._schema.name.startswith("aten::index") else []
        assert all(mask.dtype is not torch.bool for mask in masks), f"{func} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["padded", "eager"])
def test_a_step_is_submitted_without_reading_anything(
    enforce_eager: bool,
    checkpoint: Callable[[str], Checkpoint],
    make_device_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts, chunks and decodes, greedy and drawn; the draw itself is the GPU's own and looks at nothing."""
    monkeypatch.setattr(device_runner, "draw_on_device", lambda logits, u, *_: logits.argmax(-1) + 0 * u.long())
    llm = make_device_llm(checkpoint("qwen3").path, enforce_eager=enforce_eager, max_num_batched_tokens=48)
    runner = worker_of(llm).runner
    runner.backend = Unread
    submit, num_steps = runner.submit, 0

    def refused(tensor: Tensor) -> None:
        raise AssertionError("a tensor is taken to the host")

    def watched(step: StepInput) -> PendingOutput:
        nonlocal num_steps
        num_steps += 1
        with NothingIsRead(), monkeypatch.context() as patch:
            for name in ("cpu", "numpy", "tolist"):  # no op, where all is on the host already
                patch.setattr(Tensor, name, refused)
            return submit(step)

    monkeypatch.setattr(runner, "submit", watched)
    params = [SamplingParams(temperature=i % 2, max_tokens=6 + i, ignore_eos=True, seed=i) for i in range(6)]
    outputs = llm.generate(random_prompts(6), params, use_tqdm=False)
    assert [len(completion) for [completion] in tokens(outputs)] == [6, 7, 8, 9, 10, 11]
    assert num_steps > 11


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
def test_a_step_is_submitted_without_a_wait(
    enforce_eager: bool,
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once what it needs is compiled and captured. PyTorch itself raises at whatever waits for the GPU."""
    options = {"device": "cuda", "dtype": "bfloat16", "enforce_eager": enforce_eager, "enable_prefix_caching": False}
    llm = make_llm(checkpoint("qwen3").path, **{**OPTIONS, **options}, kv_cache_memory_bytes=2**24)
    params = [SamplingParams(temperature=i % 2, max_tokens=6 + i, ignore_eos=True, seed=i) for i in range(6)]
    expected = [llm.generate(random_prompts(6), params, use_tqdm=False) for _ in range(2)][1]
    runner = worker_of(llm).runner
    submit = runner.submit

    def watched(step: StepInput) -> PendingOutput:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return submit(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(runner, "submit", watched)
    assert tokens(llm.generate(random_prompts(6), params, use_tqdm=False)) == tokens(expected)


def test_a_lone_decode_is_fused_by_who_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bits are others, so that batch invariance would end there."""
    pytest.importorskip("triton")
    from lightvllm.attention.triton import InvariantTritonAttention, TritonAttention

    called: list[str] = []
    monkeypatch.setattr(kernels, "has_few_rows_attention", lambda *_: True)
    monkeypatch.setattr(kernels, "few_rows_attention", lambda *_: called.append("fused"))
    monkeypatch.setattr(kernels, "rotary_qkv", lambda qkv, *_: qkv.view(len(qkv), 4, 8))
    layer, cos = AttentionLayer(0, 2, 1, 8, 1.0), torch.ones(1, 1, 8)
    cache = [LayerCache(torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8))]
    ints = torch.zeros(1, dtype=torch.int32)
    for backend in (TritonAttention, InvariantTritonAttention):
        monkeypatch.setattr(backend, "_attend", lambda _, layer, cache, query: called.append("apart") or query)
        for num_decodes in (1, 2):
            batch = DeviceBatch(num_decodes, 0, 4, ints, ints, ints[None], torch.arange(num_decodes))
            backend(cache, batch).attend_product(layer, torch.zeros(num_decodes, 32), None, None, 0.0, cos, cos)
    assert called == ["fused", "apart", "apart", "apart"]


def test_a_capture_without_memory_costs_the_graph_and_not_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = DecodeGraphs(lambda size, sampling, table: torch.arange(size), 4, 2, torch.device("cpu"))
    attempts: list[int] = []

    def capture(size: int, *_: object) -> None:
        attempts.append(size)
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(graphs, "device", SimpleNamespace(type="cuda"))
    monkeypatch.setattr(graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 0))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    for _ in range(3):
        assert graphs.run(4, Sampling.GREEDY, torch.zeros(4, 1, dtype=torch.int32)).tolist() == [0, 1, 2, 3]
    assert attempts == [4]


def test_a_lost_device_blames_no_request(
    checkpoint: Callable[[str], Checkpoint], make_device_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's process is to end: requests tried one by one would all fail."""
    llm = make_device_llm(checkpoint("qwen3").path)

    def lost(step: object) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(worker_of(llm).runner, "submit", lost)
        with pytest.raises(DeviceLost, match="is lost to this process: an illegal memory access"):
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2), use_tqdm=False)


def test_a_backend_that_cannot_be_captured_runs_without_graphs(
    checkpoint: Callable[[str], Checkpoint],
    make_llm: Callable[..., LLM],
    make_device_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flash, for one, gathers as many keys as a request may have: in a graph that is the longest there can be."""
    assert not FlashAttention.is_capturable
    monkeypatch.setattr(OnDevice, "is_capturable", False)
    path, prompts = checkpoint("qwen3").path, random_prompts(3)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    llm = make_device_llm(path)
    assert worker_of(llm).runner.graphs is None
    expected = make_llm(path, **OPTIONS).generate(prompts, params, use_tqdm=False)
    assert tokens(llm.generate(prompts, params, use_tqdm=False)) == tokens(expected)


def test_sizes_of_graphs() -> None:
    for most in (1, 2, 3, 5, 64, 100, 256, 512, 1000):
        sizes = graph_sizes(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] >= min(most, 512)
        assert len(sizes) == 1 or sizes[-2] < most
