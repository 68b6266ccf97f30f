"""What each idea of an engine is worth: the same requests, with one idea more at every step. Imports no torch.

Each step is a process of its own. Those before the kernels run the package without its compiled library, as it is on a
machine where that was not built: linked file by file into a folder that has no library.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

import lightvllm
from lightvllm.bench.compare.loads import Load
from lightvllm.bench.figures import percentile
from lightvllm.bench.job import run_job

DTYPE = "float32"  # in which the steps' tokens can be expected to be the same
PACKAGE = Path(lightvllm.__file__).absolute().parent
LIBRARY = "_cpu*.so"  # in `lightvllm.kernels`, which looks for it by that name


@dataclass(frozen=True)
class Step:
    """One idea, on top of those before it.

    Attributes:
        name: as flags and JSON call it.
        loop: of `lightvllm.learn.contiguous`, that runs; None for the engine.
        options: of `LLM`.
        has_kernels: whether the compiled kernels are there.
        rounds: whether its numbers are rounded, and its tokens may be others.
    """

    name: str
    idea: str
    loop: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    has_kernels: bool = False
    rounds: bool = False

    @property
    def what_runs(self) -> str:
        """The code and its options, in a line."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        runs = f"LLM({options})" if self.loop is None else f"learn.contiguous.{self.loop}"
        return f"{runs}, {'compiled kernels' if self.has_kernels else 'PyTorch operations'}"


STEPS = (
    Step("naive", "naive loop", loop="naive_tokens"),
    Step("kv-cache", "KV cache", loop="cached_tokens"),
    Step(
        "paged",
        "paged blocks",
        options={"max_num_seqs": 1, "enable_prefix_caching": False, "attention_backend": "sdpa"},
    ),
    Step("batching", "continuous batching", options={"enable_prefix_caching": False, "attention_backend": "sdpa"}),
    Step("prefix-cache", "prefix cache", options={"attention_backend": "sdpa"}),
    Step("kernels", "fast attention, kernels", has_kernels=True),
    Step("int8", "int8 weights", options={"quantization": "int8"}, has_kernels=True, rounds=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a step gave; figures are medians over the runs, in seconds and bytes.

    Attributes:
        latency, latency_p99: from sending a request to its last token; mean and 99th percentile over the requests.
        time_to_first_token: the same to its first token, the mean.
        output_tokens_per_s: of all requests together.
        peak_bytes: the most memory that the process held.
        kv_usage: of the KV cache that running requests had reserved, the share that held a token of one, over all
            steps. Above 1 where requests share blocks; None without a cache.
        num_same: requests that got the same tokens as from the first step that was run.
    """

    step: Step
    latency: float
    latency_p99: float
    time_to_first_token: float
    output_tokens_per_s: float
    peak_bytes: int
    kv_usage: float | None
    num_same: int

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        figures = {name: value for name, value in vars(self).items() if name != "step"}
        return {"name": self.step.name, "idea": self.step.idea, "what_runs": self.step.what_runs} | figures


def measure_steps(
    steps: Sequence[Step],
    model: Path,
    vocab_size: int,
    load: Load,
    max_model_len: int,
    repeats: int,
    work: Path,
    show_progress: bool = False,
) -> list[Outcome]:
    """Run the load with each step, one after the other.

    Args:
        load: whose context is computed as part of the prompts, and found in no cache at first.
        work: an empty folder for what passes between the processes.

    Raises:
        ValueError: the load does not fit, there are no compiled kernels, or a step fails, with its own words.
    """
    if load.max_len > max_model_len:
        raise ValueError(f"max_model_len: {max_model_len} is too small for requests of up to {load.max_len} tokens")
    if any(step.has_kernels for step in steps) and not list((PACKAGE / "kernels").glob(LIBRARY)):
        names = " and ".join(step.name for step in STEPS if step.has_kernels)
        raise ValueError(f"steps: {names} cannot run, as the compiled CPU kernels were not built; --only names others")
    prompts, output_lens = load.draw(vocab_size, 0)
    without_library = work / "without_library"
    _link_without_library(without_library)
    outcomes: list[Outcome] = []
    expected: list[list[int]] = []
    for step in tqdm(steps, desc="Steps", disable=not show_progress):
        job = {
            "model": str(model.resolve()),
            "dtype": DTYPE,
            "max_model_len": max_model_len,
            "loop": step.loop,
            "options": step.options,
            "has_kernels": step.has_kernels,
            "prompts": prompts,
            "output_lens": output_lens,
            "repeats": repeats,
        }
        folder = PACKAGE.parent if step.has_kernels else without_library
        result = _run_process(step, job, folder, work)
        expected = expected or result["runs"][0]["token_ids"]
        outcomes.append(_outcome(step, result, expected))
    return outcomes


def _link_without_library(folder: Path) -> None:
    """The package in a folder, but for the compiled library."""
    kernels = folder / PACKAGE.name / "kernels"
    kernels.mkdir(parents=True)
    for source in PACKAGE.iterdir():
        if source.name != "kernels":
            (kernels.parent / source.name).symlink_to(source)
    for source in (PACKAGE / "kernels").iterdir():
        if not source.match(LIBRARY):
            (kernels / source.name).symlink_to(source)


def _run_process(step: Step, job: dict[str, Any], folder: Path, work: Path) -> dict[str, Any]:
    """The fields of `steps_process.Result`, from a process that finds the package in `folder`."""
    try:
        return run_job("lightvllm.bench.steps_process", job, work, folder)
    except ValueError as error:
        raise ValueError(f"{step.name}: {error}") from None


def _outcome(step: Step, result: dict[str, Any], expected: list[list[int]]) -> Outcome:
    runs = result["runs"]
    tokens = runs[0]["token_ids"]
    used, reserved = (sum(run[name] for run in runs) for name in ("used_tokens", "reserved_tokens"))
    return Outcome(
        step,
        statistics.median(statistics.mean(run["latencies"]) for run in runs),
        statistics.median(percentile(run["latencies"], 99) for run in runs),
        statistics.median(statistics.mean(run["first_token_times"]) for run in runs),
        statistics.median(sum(map(len, run["token_ids"])) / run["seconds"] for run in runs),
        result["peak_bytes"],
        used / reserved if reserved else None,
        sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True)),
    )


@dataclass(frozen=True)
class Column:
    """A figure of the table and the picture."""

    key: str
    header: str
    show: Callable[[Any], str]
    is_log: bool = False


COLUMNS = (
    Column("latency", "latency, mean", "{:.2f} s".format, is_log=True),
    Column("latency_p99", "latency, 99th", "{:.2f} s".format, is_log=True),
    Column("time_to_first_token", "first token", "{:.2f} s".format, is_log=True),
    Column("output_tokens_per_s", "tokens/s", "{:,.1f}".format, is_log=True),
    Column("peak_bytes", "peak memory", lambda value: f"{value / 2**20:,.0f} MiB"),
    Column("kv_usage", "KV used", lambda value: "-" if value is None else f"{value:.0%}"),
)


def steps_text(outcomes: Sequence[Outcome], num_requests: int) -> str:
    """The table, what its figures are, and what ran at each step."""
    width = max(len(outcome.step.idea) for outcome in outcomes)
    lines = [f"{'':{width}}" + "".join(f"{column.header:>15}" for column in COLUMNS) + f"{'same tokens':>20}"]
    for outcome in outcomes:
        cells = [column.show(getattr(outcome, column.key)) for column in COLUMNS]
        same = f"{outcome.num_same} of {num_requests}" + (" (rounded)" if outcome.step.rounds else "")
        lines.append(f"{outcome.step.idea:{width}}" + "".join(f"{cell:>15}" for cell in cells) + f"{same:>20}")
    lines += [
        "",
        "Latency and first token count from the moment at which all requests are sent. KV used: of the cache that",
        "requests reserve, the share that holds their tokens; above 100% they share blocks. Same tokens: requests",
        f"with the output of the first line. All in {DTYPE}, each line in a process of its own:",
    ]
    return "\n".join(lines + [f"  {outcome.step.idea:{width}}  {outcome.step.what_runs}" for outcome in outcomes])


def draw_steps(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a picture: a panel for each figure, a bar for each step."""
    from matplotlib.figure import Figure

    rows, width = 2, -(-len(COLUMNS) // 2)
    figure = Figure(figsize=(3 * width + 1.5, rows * (0.28 * len(outcomes) + 0.6)), layout="constrained")
    panels = figure.subplots(rows, width, squeeze=False).ravel()
    ideas = [outcome.step.idea for outcome in outcomes]
    for index, (panel, column) in enumerate(zip(panels, COLUMNS, strict=True)):
        values = [getattr(outcome, column.key) for outcome in outcomes]
        bars = panel.barh(ideas, [value or 0.0 for value in values], color="tab:orange")
        panel.bar_label(bars, [column.show(value) for value in values], padding=2, fontsize=7)
        if column.is_log:
            panel.set_xscale("log")
        panel.invert_yaxis()
        panel.margins(x=0.4)
        panel.tick_params(labelsize=7, labelleft=index % width == 0)
        panel.xaxis.set_visible(False)  # the bars are labelled
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_title(column.header + (" (log)" if column.is_log else ""), fontsize=8)
    figure.savefig(path, dpi=150)
