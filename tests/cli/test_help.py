"""--help answers at once, and no torch is loaded for it."""

import resource
import subprocess
import sys
import time

import pytest

from lightvllm.cli.learn import SIMULATORS
from lightvllm.cli.main import VERBS

COMMANDS = [[], ["serve"], ["generate"], ["chat"], ["sql"], ["demo"], ["learn"], ["bench"], ["quantize"]]
COMMANDS += [["bench", kind] for kind in ("latency", "throughput", "prefix", "host", "startup", "serve", "overhead")]
COMMANDS += [["learn", name] for name in SIMULATORS]
COMMANDS += [["bench", "steps"], ["eval"], ["env"]]
LIMIT_SECONDS = 0.3
SHOW_HELP_AND_MODULES = """
import sys
from lightvllm.cli.main import main
for command in {commands}:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0, command
print("loaded:", *sys.modules)
"""


def test_each_verb_has_a_command_here() -> None:
    assert {command[0] for command in COMMANDS if command} == {verb.__name__.rpartition(".")[2] for verb in VERBS}


@pytest.mark.parametrize("command", [[], ["generate"], ["bench", "throughput"]], ids=" ".join)
def test_help_answers_within_the_limit(command: list[str]) -> None:
    """In wall time; on a machine too busy to show it, in processor time, as --help waits for nothing."""
    best = float("inf")
    for _ in range(4):
        start, cpu_start = time.perf_counter(), _cpu_seconds_of_children()
        subprocess.run([sys.executable, "-m", "lightvllm.cli", *command, "--help"], check=True, capture_output=True)
        best = min(best, time.perf_counter() - start, _cpu_seconds_of_children() - cpu_start)
        if best < LIMIT_SECONDS:
            return
    pytest.fail(f"{best:.2f} s")


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_loads_nothing_heavy() -> None:
    code = SHOW_HELP_AND_MODULES.format(commands=COMMANDS)
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    help_texts, _, loaded = result.stdout.rpartition("loaded:")
    assert help_texts.count("show this help message") == len(COMMANDS)
    heavy = {"torch", "numpy", "tokenizers", "transformers", "rich", "tqdm", "jinja2", "huggingface_hub"}
    assert not heavy & set(loaded.split())


def test_a_verb_is_not_needed_to_get_help(capsys: pytest.CaptureFixture[str]) -> None:
    from lightvllm.cli.main import main

    assert main([]) == 0
    assert "generate" in capsys.readouterr().out
    assert main(["bench"]) == 0
    assert "throughput" in capsys.readouterr().out
