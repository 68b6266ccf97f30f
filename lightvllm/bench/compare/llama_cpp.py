"""llama.cpp as a contender, by its own tools: `llama-batched-bench` for loads, `llama-bench` for the cold start."""

import json
import subprocess
from pathlib import Path
from typing import Any

from lightvllm.bench.compare.loads import Load, Timing
from lightvllm.bench.compare.process import ContenderError

TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize")
BATCH = 2048  # tokens that a call may bring; llama.cpp's own default


def check_tools(folder: Path) -> None:
    """Raise a ContenderError that names what is missing, if anything is."""
    missing = [tool for tool in TOOLS if not (folder / tool).is_file()]
    if missing:
        raise ContenderError(f"no {', '.join(missing)} in {folder}")


def quantize(folder: Path, source: Path, target: Path, scheme: str) -> None:
    """Write a GGUF file in another number type, such as Q8_0."""
    run_tool([str(folder / "llama-quantize"), str(source), str(target), scheme], timeout=300)


def start_command(folder: Path, model: Path, threads: int) -> list[str]:
    """Open the model, and generate one token."""
    options = ["-m", str(model), "-t", str(threads), "-p", "0", "-n", "1", "-r", "1", "--no-warmup", "-o", "json"]
    return [str(folder / "llama-bench"), *options]


def load_command(folder: Path, model: Path, threads: int, load: Load) -> list[str]:
    """Run a load of equal requests.

    A context goes before each prompt and is computed once for all (-pps); the prompts' own tokens are part of it, as
    the tool knows one prompt length only. That is less work, by so much, than others do in the prefill, none in decode.
    """
    if not load.is_uniform:
        raise ContenderError("its tools run requests of one size only")
    prompt, output = load.context_len + load.input_lens[0], load.output_lens[0]
    # Requests that share a prompt share the cells of one cache (-kvu), which is the faster way; else each has its own.
    cells = (
        _aligned(prompt + load.num_requests * output)
        if load.context_len
        else load.num_requests * _aligned(prompt + output)
    )
    options = {
        "-m": model,
        "-t": threads,
        "-c": cells,
        "-b": BATCH,
        "-npp": prompt,
        "-ntg": output,
        "-npl": load.num_requests,
        "--output-format": "jsonl",
    }
    flags = [str(word) for option in options.items() for word in option]
    return [str(folder / "llama-batched-bench"), *flags, *(["-pps", "-kvu"] if load.context_len else [])]


def _aligned(cells: int) -> int:
    """A cache's size, as llama.cpp rounds it."""
    return -(-cells // 256) * 256


def parse_start(output: str) -> str:
    """The version in what `llama-bench -o json` printed, once it generated a token."""
    try:
        (run,) = json.loads(output)
        return f"build {run['build_number']} ({run['build_commit']})"
    except (ValueError, KeyError, TypeError) as error:
        raise ContenderError(f"llama-bench: cannot read its output: {error!r}") from None


def parse_load(output: str, load: Load) -> Timing:
    """The one run in what `llama-batched-bench --output-format jsonl` printed.

    It generates all of `tg` tokens in the time it gives, the first one too, so that time holds one step more than what
    others count: the decode time is that of the steps after the first.
    """
    try:
        row: dict[str, Any]
        (row,) = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        asked = (load.num_requests, load.context_len + load.input_lens[0], load.output_lens[0])
        ran = (row["pl"], row["pp"], row["tg"])
        if ran != asked:
            raise ContenderError(f"llama-batched-bench ran {ran}, not {asked}")
        steps = load.output_lens[0]
        return Timing(row["t_pp"], row["t_tg"] * (steps - 1) / steps, row["t_pp"] + row["t_tg"])
    except (ValueError, KeyError) as error:
        raise ContenderError(f"llama-batched-bench: cannot read its output: {error!r}") from None


def run_tool(command: list[str], timeout: float) -> str:
    """What a tool prints.

    Raises:
        ContenderError: it failed, with its last words, or took longer than `timeout` seconds.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise ContenderError(f"{name}: not done within {timeout:.0f} s") from None
    except OSError as error:
        raise ContenderError(f"{name}: {error.strerror}") from None
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
        raise ContenderError(f"{name}: exit code {done.returncode}: {words[:300]}")
    return done.stdout
