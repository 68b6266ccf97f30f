"""Which tokens count, and what is known when they are predicted."""

import pytest

from lightvllm.bench.quality.windows import Window, limited, text_windows


@pytest.mark.parametrize(("total", "length", "stride"), [(2, 8, 4), (8, 8, 4), (9, 8, 4), (100, 8, 3), (101, 16, 15)])
def test_each_token_but_the_first_counts_once(total: int, length: int, stride: int) -> None:
    windows = list(text_windows(range(total), length, stride))
    counted = [token for window in windows for token in window.token_ids[window.first_counted :]]
    assert counted == list(range(1, total))
    for window in windows:
        assert len(window.token_ids) <= length
        assert window.token_ids == list(range(window.token_ids[0], window.token_ids[-1] + 1))
    assert all(window.first_counted >= length - stride for window in windows[1:])


def test_windows_by_hand() -> None:
    assert list(text_windows([5, 6, 7, 8, 9, 10], 4, 2)) == [Window([5, 6, 7, 8], 1), Window([7, 8, 9, 10], 2)]


@pytest.mark.parametrize(("total", "length", "stride"), [(9, 4, 4), (9, 4, 0), (1, 4, 2), (0, 4, 2)])
def test_what_cannot_be(total: int, length: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"stride: |text: has"):
        list(text_windows(range(total), length, stride))


def test_a_limit_cuts() -> None:
    windows = list(text_windows(range(20), 8, 4))
    assert [window.num_counted for window in windows] == [7, 4, 4, 4]
    assert limited(windows, 100) == windows
    assert limited(windows, 12) == windows[:2]
    assert limited(windows, 5) == [Window([0, 1, 2, 3, 4, 5], 1)]
    with pytest.raises(ValueError, match="limit: 0 is out of range"):
        limited(windows, 0)
