"""Who takes part: each opens the model in one number type and runs loads, in processes that are paused in between."""

import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightvllm
from lightvllm.bench.compare import llama_cpp
from lightvllm.bench.compare.loads import Load, Timing
from lightvllm.bench.compare.process import ContenderError, ContenderProcess

DRIVERS = Path(__file__).parent / "drivers"
PACKAGE = Path(lightvllm.__file__).parent
START_TIMEOUT, LOAD_TIMEOUT = 600.0, 600.0
SETTLE = 8.0  # seconds after a start in which an engine may take the memory of its cache
KV_CACHE_BYTES = 2 << 30
MAX_NUM_BATCHED_TOKENS = 4096  # the prompts of the largest load in one step
# Number type -> what each contender calls it.
QUANTIZATION: dict[str, str | None] = {"bf16": None, "int8": "int8", "4-bit": "w4"}
BF16_ONLY = {"mixed": "compared in bf16 only"}
GGUF_TYPES = {"bf16": "BF16", "int8": "Q8_0", "4-bit": "Q4_0"}


@dataclass(frozen=True)
class Start:
    """A start of a contender.

    Attributes:
        seconds: from starting the process to the first token, model and libraries in the file cache.
    """

    seconds: float
    version: str


class Contender(Protocol):
    """One engine with the model in one number type. Its methods raise `ContenderError`.

    Attributes:
        keeps_context: whether a context computed once serves further runs.
    """

    name: str
    keeps_context: bool

    def start(self) -> Start:
        """Start it; it is paused afterwards."""
        ...

    def run(self, load: Load, vocab_size: int, run: int) -> Timing:
        """Run a load; it is paused afterwards."""
        ...

    def close(self) -> None:
        """End it, started or not."""
        ...


@dataclass
class Driven:
    """A contender whose process stays, with the model in it.

    Args:
        python: of the environment it is installed in.
        driver: the program in `drivers/`.
        options: the driver's.
        skips: load -> why it is not run.

    Attributes:
        context_seconds: load -> what it took to compute its context, once.
    """

    name: str
    python: str
    driver: str
    options: Mapping[str, Any]
    threads: int
    log: Path
    skips: Mapping[str, str] = field(default_factory=dict)
    keeps_context: bool = field(default=True, init=False)
    _process: ContenderProcess | None = field(default=None, init=False)
    context_seconds: dict[str, float] = field(default_factory=dict, init=False)

    def start(self) -> Start:
        """See `Contender.start`."""
        started = time.monotonic()
        # Whatever the shell has set: all contenders get the same threads, and peers find no library of ours.
        path = [f"PYTHONPATH={PACKAGE.parent}"] if self.python == sys.executable else ["-u", "PYTHONPATH"]
        environment = ["env", *path, f"OMP_NUM_THREADS={self.threads}"]
        command = [*environment, self.python, str(DRIVERS / self.driver), json.dumps(self.options)]
        self._process = ContenderProcess(command, self.log)
        version = self._process.receive(START_TIMEOUT)["version"]
        seconds = time.monotonic() - started
        time.sleep(SETTLE)
        self._process.pause()
        return Start(seconds, version)

    def run(self, load: Load, vocab_size: int, run: int) -> Timing:
        """See `Contender.run`. A context is computed before the first run, and is in the prefix cache from then on."""
        if load.name in self.skips:
            raise ContenderError(self.skips[load.name])
        assert self._process is not None
        prompts, output_lens = load.draw(vocab_size, run)
        self._process.resume()
        try:
            if load.context_len and load.name not in self.context_seconds:
                answer = self._ask([load.context(vocab_size)], [1])
                self.context_seconds[load.name] = answer["seconds"]
            answer = self._ask(prompts, output_lens)
        finally:
            self._process.pause()
        return Timing.of_requests(answer["first"], answer["last"], answer["seconds"])

    def close(self) -> None:
        """See `Contender.close`."""
        if self._process is not None:
            self._process.close()

    def _ask(self, prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        assert self._process is not None
        self._process.send({"prompts": prompts, "output_lens": output_lens})
        answer = self._process.receive(LOAD_TIMEOUT)
        if answer["lens"] != output_lens:
            raise ContenderError(f"generated {sum(answer['lens'])} tokens where {sum(output_lens)} were asked for")
        return answer


@dataclass
class LlamaCpp:
    """llama.cpp: every run is a process of its own, as its tools are made."""

    name: str
    folder: Path
    model: Path
    threads: int
    keeps_context: bool = field(default=False, init=False)

    def start(self) -> Start:
        """See `Contender.start`."""
        llama_cpp.check_tools(self.folder)
        started = time.monotonic()
        output = llama_cpp.run_tool(llama_cpp.start_command(self.folder, self.model, self.threads), START_TIMEOUT)
        return Start(time.monotonic() - started, llama_cpp.parse_start(output))

    def run(self, load: Load, vocab_size: int, run: int) -> Timing:
        """See `Contender.run`."""
        command = llama_cpp.load_command(self.folder, self.model, self.threads, load)
        return llama_cpp.parse_load(llama_cpp.run_tool(command, LOAD_TIMEOUT), load)

    def close(self) -> None:
        """See `Contender.close`."""


@dataclass(frozen=True)
class Peers:
    """Where the other engines are; None is one that is not given.

    Attributes:
        llama_bin: folder with llama.cpp's tools.
    """

    vllm_python: str | None = None
    openvino_python: str | None = None
    transformers_python: str | None = None
    llama_bin: Path | None = None


def contenders_of(
    dtype: str, peers: Peers, work: Path, threads: int, max_model_len: int
) -> tuple[list[Contender], dict[str, str]]:
    """Those that have this number type, this engine first; and name -> reason of those that are not given."""
    given: list[Contender] = []
    absent = {}
    options = _options(work, threads, max_model_len)

    def add(name: str, python: str | None, driver: str, flag: str, skips: Mapping[str, str], **more: Any) -> None:
        log = work / f"{name}-{dtype}.log"
        if python is None:
            absent[name] = f"not given ({flag})"
        else:
            given.append(Driven(name, python, driver, options | more, threads, log, skips))

    given.append(this_engine(dtype, work, threads, max_model_len))
    model = gguf_path(work, dtype)
    if dtype == "bf16":
        cache = work / "vllm-cache"
        shutil.rmtree(cache, ignore_errors=True)
        add("vLLM", peers.vllm_python, "run_vllm.py", "--vllm-python", {}, cache=str(cache))
        skips = {"mixed": "its batches are of one length", "context": "it keeps no context between calls"}
        add("transformers", peers.transformers_python, "run_transformers.py", "--transformers-python", skips)
    elif peers.openvino_python is None or model.is_file():
        add("OpenVINO", peers.openvino_python, "run_openvino.py", "--openvino-python", BF16_ONLY, model=str(model))
    else:
        absent["OpenVINO"] = f"no {GGUF_TYPES[dtype]} file: llama-quantize makes it (--llama-bin)"
    if peers.llama_bin is None:
        absent["llama.cpp"] = "not given (--llama-bin)"
    else:
        given.append(LlamaCpp("llama.cpp", peers.llama_bin, model, threads))
    return given, absent


def gguf_path(work: Path, dtype: str) -> Path:
    """Where the model lies as GGUF in a number type."""
    return work / f"{GGUF_TYPES[dtype]}.gguf"


def this_engine(
    dtype: str, work: Path, threads: int, max_model_len: int, kv_cache_bytes: int = KV_CACHE_BYTES
) -> Driven:
    """LightvLLM. With int8 and 4-bit weights the KV cache is of int8, as OpenVINO's is unless told otherwise."""
    options = _options(work, threads, max_model_len)
    options |= {"quantization": QUANTIZATION[dtype], "kv_cache_dtype": "auto" if dtype == "bf16" else "int8"}
    options["kv_cache_bytes"] = kv_cache_bytes
    log = work / f"lightvllm-{dtype}.log"
    skips = {} if dtype == "bf16" else BF16_ONLY
    return Driven("lightvllm", sys.executable, "run_lightvllm.py", options, threads, log, skips)


def _options(work: Path, threads: int, max_model_len: int) -> dict[str, Any]:
    return {
        "model": str(work / "model"),
        "kv_cache_bytes": KV_CACHE_BYTES,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "max_model_len": max_model_len,
        "threads": threads,
    }
