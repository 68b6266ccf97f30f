"""The arithmetic of benchmarks, on numbers where the answer is plain."""

import subprocess
import sys

import pytest

from lightvllm.bench.figures import Figures, medians, percentile, ratios
from lightvllm.bench.workload import Workload

WORKLOAD = Workload(num_requests=4, input_len=10, output_len=5, prefix_len=6, seed=3)


def test_workload_counts() -> None:
    assert WORKLOAD.num_prompt_tokens == 64
    assert WORKLOAD.num_output_tokens == 20
    assert str(WORKLOAD) == "4 x (6 shared + 10 prompt + 5 generated) tokens"


def test_prompts_share_their_prefix_and_nothing_else() -> None:
    prompts = WORKLOAD.prompts(vocab_size=1000)
    assert [len(prompt) for prompt in prompts] == [16] * 4
    assert len({tuple(prompt[:6]) for prompt in prompts}) == 1
    assert len({tuple(prompt[6:]) for prompt in prompts}) == 4
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)
    assert max(max(prompt) for prompt in Workload(num_requests=4).prompts(vocab_size=2)) == 1


def test_the_seed_makes_the_prompts() -> None:
    assert WORKLOAD.prompts(1000) == WORKLOAD.prompts(1000)
    other = Workload(num_requests=4, input_len=10, output_len=5, prefix_len=6, seed=4)
    assert other.prompts(1000) != WORKLOAD.prompts(1000)


@pytest.mark.parametrize("field", ["num_requests", "input_len", "output_len", "prefix_len"])
def test_a_workload_out_of_range(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: -1 is out of range"):
        Workload(**{"num_requests": 1, field: -1})


def test_figures_from_times() -> None:
    figures = Figures.from_times(WORKLOAD, 4.0, [1.0, 2.0, 2.0, 3.0], [3.0, 3.0, 3.0, 4.0])
    assert figures.time_to_first_token == 2.0
    assert figures.time_to_first_token_p99 == 3.0
    assert figures.inter_token_latency == 0.25
    assert figures.inter_token_latency_p99 == 0.5
    assert figures.output_tokens_per_s == 5.0
    assert figures.total_tokens_per_s == 21.0


def test_one_token_has_no_time_between_tokens() -> None:
    figures = Figures.from_times(Workload(num_requests=1, output_len=1), 1.0, [1.0], [1.0])
    assert figures.inter_token_latency is None
    assert medians([figures, figures]).inter_token_latency is None
    assert ratios(figures, figures)["inter_token_latency"] is None


def test_medians_and_ratios() -> None:
    runs = [Figures.from_times(WORKLOAD, seconds, [seconds / 2] * 4, [seconds] * 4) for seconds in (1.0, 2.0, 30.0)]
    median = medians(runs)
    assert median == runs[1]
    better = ratios(runs[0], runs[1])
    assert all(ratio == pytest.approx(2.0) for ratio in better.values() if ratio is not None)


def test_percentile() -> None:
    assert percentile([4, 1, 3, 2], 50) == 2
    assert percentile([4, 1, 3, 2], 99) == 4
    assert percentile(list(range(1, 201)), 99) == 198
    assert percentile([7], 0) == 7


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    """In a process of its own, where nothing else comes and goes."""
    code = """
from lightvllm.bench.figures import peak_resident_bytes
peaks = [peak_resident_bytes()]
held = b"x" * 200_000_000
peaks.append(peak_resident_bytes())
del held
print(*peaks, peak_resident_bytes())
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, holding, after = map(int, result.stdout.split())
    assert 190_000_000 < holding - before < 220_000_000
    assert after > 0.99 * holding  # the kernel counts pages in batches
