"""The threads that share an op's work: all of it is done once, from any thread, in a forked child, beside others."""

import os
import threading
import time

import pytest
import torch

from lightvllm import kernels
from lightvllm.layers.linear import PackedProduct

pytestmark = pytest.mark.skipif(not kernels.COMPILED, reason="the CPU kernels were not built")


@pytest.fixture
def product():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)  # more than there are cores, mostly
    with torch.inference_mode():
        yield PackedProduct(torch.randn(3000, 256))
    torch.set_num_threads(threads)


def test_callers_on_several_threads_do_not_mix(product: PackedProduct) -> None:
    inputs = [torch.randn(7, 256) for _ in range(4)]
    expected = [product(x, None) for x in inputs]
    wrong = []

    def check(x: torch.Tensor, y: torch.Tensor) -> None:
        torch.set_num_threads(4)
        with torch.inference_mode():
            wrong.extend(i for i in range(50) if not torch.equal(product(x, None), y))

    callers = [threading.Thread(target=check, args=case) for case in zip(inputs, expected, strict=True)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_many_small_calls(product: PackedProduct) -> None:
    """Helpers that wake up late find other work than they were woken for, or none."""
    x = torch.randn(1, 256)
    expected = product(x, None)
    for i in range(2000):
        if i % 500 == 0:
            time.sleep(0.01)  # the helpers fall asleep
        torch.set_num_threads(1 + i % 4)
        assert torch.equal(product(x, None), expected)


def test_a_forked_child_has_a_team_of_its_own(product: PackedProduct) -> None:
    x = torch.randn(5, 256)
    expected = product(x, None)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(product(x, None), expected) else 1)
    deadline = time.monotonic() + 30
    status = (0, 0)
    while status[0] == 0 and time.monotonic() < deadline:
        status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == (child, 0)
