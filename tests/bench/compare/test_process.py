"""The protocol between the comparison and a contender's process, with a contender that has no model."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lightvllm.bench.compare.contenders import Driven
from lightvllm.bench.compare.drivers.serve import Stopwatch
from lightvllm.bench.compare.loads import Load, Timing
from lightvllm.bench.compare.process import ContenderError, ContenderProcess
from tests.bench.compare.fake_driver import DIE, FAIL, HANG, SHORT

FAKE = Path(__file__).with_name("fake_driver.py")
Open = Callable[..., ContenderProcess]


@pytest.fixture
def open_fake(tmp_path: Path) -> Iterator[Open]:
    opened: list[ContenderProcess] = []

    def start(**options: Any) -> ContenderProcess:
        command = [sys.executable, "-m", "tests.bench.compare.fake_driver", json.dumps(options)]
        opened.append(ContenderProcess(command, tmp_path / "log"))
        return opened[-1]

    yield start
    for process in opened:
        process.close()


def _ask(process: ContenderProcess, order: int = 5, timeout: float = 30) -> dict[str, Any]:
    process.send({"prompts": [[order], [5]], "output_lens": [2, 3]})
    return process.receive(timeout)


def test_answers_come_alone_whatever_libraries_print(open_fake: Open, tmp_path: Path) -> None:
    process = open_fake()
    assert process.receive(30) == {"version": "1.2"}
    for _ in range(2):
        assert _ask(process) == {"first": [0.5, 0.5], "last": [2.0, 3.0], "lens": [2, 3], "seconds": 5}
    process.close()
    log = (tmp_path / "log").read_text()
    assert "says a library on stdout" in log
    assert "and a process of its own, too" in log


def test_an_error_is_an_answer_and_the_process_goes_on(open_fake: Open) -> None:
    process = open_fake()
    process.receive(30)
    with pytest.raises(ContenderError, match="ValueError: out of memory"):
        _ask(process, FAIL)
    assert _ask(process)["lens"] == [2, 3]


def test_a_model_that_cannot_be_opened_is_one_line(open_fake: Open) -> None:
    with pytest.raises(ContenderError, match=r"FileNotFoundError: \[Errno 2\] no such model"):
        open_fake(fail=True).receive(30)


def test_a_dead_process_leaves_its_last_words(open_fake: Open) -> None:
    with pytest.raises(ContenderError, match="ended: Segmentation fault"):
        open_fake(die=True).receive(30)
    process = open_fake()
    process.receive(30)
    with pytest.raises(ContenderError, match="ended: killed"):
        _ask(process, DIE)
    with pytest.raises(ContenderError, match="ended"):
        _ask(process)


def test_a_process_that_hangs_is_not_waited_for(open_fake: Open) -> None:
    process = open_fake()
    process.receive(30)
    with pytest.raises(ContenderError, match=r"no answer within 0 s"):
        _ask(process, HANG, timeout=0.2)
    with pytest.raises(ContenderError, match="ended"):  # a late answer would be taken for this one's
        _ask(process)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ContenderError, match="cannot start /nowhere/python: No such file"):
        ContenderProcess(["/nowhere/python"], tmp_path / "log")


def test_a_paused_process_takes_no_processor_time(open_fake: Open) -> None:
    process = open_fake(spin=True)
    process.receive(30)
    pid = process._process.pid
    process.pause()
    _wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    before = psutil.Process(pid).cpu_times()
    time.sleep(0.3)
    assert psutil.Process(pid).cpu_times()[:2] == before[:2]
    process.resume()
    assert _ask(process)["lens"] == [2, 3]
    _wait_until(lambda: psutil.Process(pid).cpu_times()[:2] != before[:2])


def test_what_it_started_ends_with_it(open_fake: Open, tmp_path: Path) -> None:
    process = open_fake(child=str(tmp_path / "child"))
    process.receive(30)
    child = int((tmp_path / "child").read_text())
    assert psutil.pid_exists(child)
    process.pause()
    process.close()
    _wait_until(lambda: not _is_running(child))


def test_a_paused_process_does_not_outlive_a_killed_comparison(tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from lightvllm.bench.compare.process import ContenderProcess
command = [sys.executable, "-m", "tests.bench.compare.fake_driver", "{{}}"]
process = ContenderProcess(command, Path({str(tmp_path / "log")!r}))
process.receive(30)
process.pause()
print(process._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as comparison:
        assert comparison.stdout is not None
        contender = int(comparison.stdout.readline())
        _wait_until(lambda: psutil.Process(contender).status() == psutil.STATUS_STOPPED)
        comparison.kill()
    _wait_until(lambda: not _is_running(contender))


def test_a_driven_contender_is_run_and_its_tokens_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightvllm.bench.compare.contenders.DRIVERS", FAKE.parent)
    monkeypatch.setattr("lightvllm.bench.compare.contenders.SETTLE", 0.0)
    driven = Driven("fake", sys.executable, FAKE.name, {}, 1, tmp_path / "log", skips={"mixed": "cannot"})
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(driven, "_ask", _recording(driven._ask, sent))
    try:
        start = driven.start()
        assert start.version == "1.2"
        assert 0 < start.seconds < 60
        # The fake's requests end as many seconds after the start as they have tokens, and begin after half a second.
        load = Load(name="decode", num_requests=3, input_lens=(4, 4), output_lens=(6, 6))
        assert driven.run(load, 50, run=0) == Timing(prefill=0.5, decode=5.5, whole=18)
        with pytest.raises(ContenderError, match="cannot"):
            driven.run(Load(name="mixed", num_requests=1), 50, run=0)
        sent.clear()
        context = Load(name="context", num_requests=2, input_lens=(4, 4), output_lens=(6, 6), context_len=90)
        for run in range(2):
            driven.run(context, 50, run)
        assert sent == [(1, 90), (2, 94), (2, 94)]  # the context goes ahead once
        monkeypatch.setattr(Load, "draw", lambda *_: ([[SHORT], [1]], [6, 6]))
        with pytest.raises(ContenderError, match="generated 2 tokens where 12 were asked for"):
            driven.run(load, 50, run=1)
    finally:
        driven.close()


def test_without_its_python_nothing_starts(tmp_path: Path) -> None:
    driven = Driven("fake", "/nowhere/python", FAKE.name, {}, 1, tmp_path / "log")
    with pytest.raises(ContenderError, match="/nowhere/python"):
        driven.start()
    driven.close()


def test_the_stopwatch_notes_first_and_last() -> None:
    stopwatch = Stopwatch(2)
    for request, count in ((0, 1), (1, 2), (0, 3)):
        time.sleep(0.01)
        stopwatch.note(request, count)
    record = stopwatch.record()
    assert record["lens"] == [4, 2]
    assert 0 < record["first"][0] < record["first"][1] == record["last"][1] < record["last"][0] <= record["seconds"]


def _recording(ask: Callable[..., Any], sent: list[tuple[int, int]]) -> Callable[..., Any]:
    def recorded(prompts: list[list[int]], output_lens: list[int]) -> Any:
        sent.append((len(prompts), len(prompts[0])))
        return ask(prompts, output_lens)

    return recorded


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
