"""Three layouts of one memory: by hand on a few requests, and what must hold on any."""

import argparse

import matplotlib.figure
import pytest

from lightvllm.learn.clock import StepCost
from lightvllm.learn.paged import MemoryUse, Paged, add_flags, from_args, paged
from lightvllm.learn.workload import PlannedRequest, Workload

SECOND = StepCost(fixed=1.0, per_token=0.0, per_context_token=0.0)  # a step is a second


def requests(*sizes: tuple[int, int]) -> Workload:
    """(prompt tokens, tokens in the cache at the end) of requests that come at once."""
    return Workload(tuple(PlannedRequest(input_len=prompt, output_len=final - prompt + 1) for prompt, final in sizes))


# The first and the third end after three steps and leave 40 tokens each, with the second's 20 between them.
SCATTERED = requests((38, 40), (10, 20), (38, 40), (55, 60))


def test_what_is_free_but_scattered_by_hand() -> None:
    result = paged(SCATTERED, num_tokens=100, block_size=10, max_model_len=61, cost=SECOND)
    exact = result.exact_stretches
    # The second request has its last key in step 11; until then the 80 free tokens are no place for 60.
    assert [moment.stranded for moment in exact.moments[:12]] == [0] * 3 + [80] * 8 + [0]
    assert [moment.num_running for moment in exact.moments[:12]] == [3] * 3 + [1] * 9
    assert exact.moments[11].start == 11.0
    assert exact.external_fragmentation == pytest.approx(8 * 80 / (100 * exact.seconds))
    # Pages need not lie together, and the last request comes in as soon as two have left.
    assert [moment.num_running for moment in result.pages.moments[:4]] == [3, 3, 3, 2]
    assert result.pages.external_fragmentation == 0
    assert result.pages.seconds == 11
    assert exact.seconds == 11 + 6


def test_a_stretch_goes_to_the_first_place_that_is_large_enough() -> None:
    # The first, 20 tokens, and the third, 30, leave before the second; then come 21, which does not fit the first
    # hole, 20, which fills it, and 9, which fills the other.
    load = requests((19, 20), (10, 40), (29, 30), (20, 21), (19, 20), (8, 9))
    exact = paged(load, num_tokens=90, block_size=10, max_model_len=50, cost=SECOND).exact_stretches
    assert [moment.num_running for moment in exact.moments[:3]] == [3, 3, 4]
    assert [moment.reserved for moment in exact.moments[:3]] == [90, 90, 40 + 21 + 20 + 9]
    starts = {stretch.request: stretch.start for stretch in exact.fullest}
    assert starts == {1: 20, 3: 60, 4: 0, 5: 81}


def test_what_is_reserved_but_empty_by_hand() -> None:
    result = paged(SCATTERED, num_tokens=100, block_size=10, max_model_len=61, cost=SECOND)
    # One stretch of 61 fits, so one request runs at a time: 38, 39, 40 of 61, then 10 to 20, 38 to 40, 55 to 60.
    longest = result.longest_stretches
    assert longest.most_running == 1
    lengths = [*range(38, 41), *range(10, 21), *range(38, 41), *range(55, 61)]
    assert [moment.used for moment in longest.moments] == lengths
    assert longest.internal_waste == pytest.approx(1 - sum(lengths) / (61 * len(lengths)))
    assert result.exact_stretches.moments[0].reserved == 100
    assert result.exact_stretches.moments[0].used == 38 + 10 + 38
    assert result.pages.moments[0].reserved == 40 + 10 + 40
    assert result.pages.moments[0].used == 38 + 10 + 38


@pytest.fixture(scope="module")
def default() -> Paged:
    return paged()


def test_pages_hold_the_most(default: Paged) -> None:
    longest, exact, pages = default.layouts
    assert longest.most_running == 2048 // 512
    assert longest.most_running < exact.most_running < pages.most_running
    assert longest.mean_running < exact.mean_running < pages.mean_running
    assert longest.internal_waste > exact.internal_waste > pages.internal_waste > 0
    assert exact.external_fragmentation > 0
    assert longest.external_fragmentation == pages.external_fragmentation == 0
    assert longest.seconds > exact.seconds > pages.seconds


@pytest.mark.parametrize(
    "load",
    [
        Workload.random(num_requests=40, rate=100.0, seed=3),
        Workload.random(num_requests=40, output_len=(100, 150), seed=4),
        Workload.random(num_requests=20, shared_prefix_len=100, seed=5),
    ],
    ids=["arrivals", "preemptions", "prefix"],
)
def test_the_figures_agree(load: Workload) -> None:
    result = paged(load, num_tokens=1024)
    for use in result.layouts:
        for moment in use.moments:
            assert 0 < moment.used <= moment.reserved <= 1024
            assert 0 <= moment.stranded <= 1024 - moment.reserved
            assert moment.start < moment.end
        assert all(before.end <= after.start for before, after in zip(use.moments, use.moments[1:], strict=False))
        stretches = sorted(use.fullest, key=lambda stretch: stretch.start)
        assert all(0 < stretch.used <= stretch.reserved for stretch in stretches)
        ends = [0, *(stretch.start + stretch.reserved for stretch in stretches)]
        assert all(end <= stretch.start for end, stretch in zip(ends, stretches, strict=False))
        assert ends[-1] <= 1024
        assert most_used(use) >= sum(stretch.used for stretch in stretches)
    assert result.exact_stretches.num_preemptions == result.longest_stretches.num_preemptions == 0


def most_used(use: MemoryUse) -> int:
    return max(moment.used for moment in use.moments)


def test_pages_can_run_out() -> None:
    load = Workload.random(num_requests=20, output_len=(100, 150), seed=4)
    assert paged(load, num_tokens=1024).pages.num_preemptions > 0
    assert paged(load, num_tokens=20 * 512).pages.num_preemptions == 0


def test_nobody_waits_where_there_is_room() -> None:
    load = Workload.random(num_requests=6, seed=1)
    for use in paged(load, num_tokens=6 * 512).layouts:
        assert use.most_running == 6
        assert use.external_fragmentation == 0
        assert all(moment.num_waiting == 0 for moment in use.moments)


def test_pages_of_a_common_beginning_are_there_once() -> None:
    load = Workload.random(num_requests=8, input_len=20, output_len=12, shared_prefix_len=160)
    result = paged(load, num_tokens=8 * 192)
    shared = [stretch for stretch in result.pages.fullest if stretch.request is None]
    assert len(shared) == 160 // 16
    assert all(stretch.used == 16 for stretch in shared)
    assert result.pages.moments[0].used == 160 + 8 * 20
    assert result.exact_stretches.moments[0].used == 8 * 180
    assert not [stretch for stretch in result.exact_stretches.fullest if stretch.request is None]


def test_the_table(default: Paged) -> None:
    lines = default.table().splitlines()
    assert "32 requests" in lines[0]
    assert "2,048 tokens" in lines[0]
    longest, exact, pages = lines[3:6]
    assert longest.startswith("stretches of max_model_len, 512 ")
    assert exact.split()[5] == str(default.exact_stretches.most_running)
    assert f"{default.pages.internal_waste:.1%}" in pages


def test_the_picture(default: Paged) -> None:
    figure = default.plot()
    assert isinstance(figure, matplotlib.figure.Figure)
    *maps, time = figure.axes
    assert [len(panel.images) for panel in maps] == [1, 1, 1]
    assert len(time.lines) == 3
    cells = maps[0].images[0].get_array()
    assert cells.shape[0] * cells.shape[1] >= 2048
    is_free = (cells == 1).all(axis=2).sum()
    reserved = sum(stretch.reserved for stretch in default.longest_stretches.fullest)
    assert is_free == 2048 - reserved


def test_the_flags() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert from_args(parser.parse_args([])) == paged()
    words = ["--requests", "5", "--input-len", "30", "--num-tokens", "600", "--block-size", "8", "--step-ms", "2"]
    expected = paged(
        Workload.random(num_requests=5, input_len=30), num_tokens=600, block_size=8, cost=StepCost(fixed=2e-3)
    )
    assert from_args(parser.parse_args(words)) == expected


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"max_model_len": 60}, "max_model_len: 60 is less than the 61 of the longest request"),
        ({"num_tokens": 500}, "num_tokens: 500 is less than max_model_len, 512"),
        ({"block_size": 0}, "block_size: 0 is out of range, expected 1 to 512"),
        ({"block_size": 513}, "block_size: 513 is out of range"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paged(SCATTERED, **sizes)  # type: ignore[arg-type]
