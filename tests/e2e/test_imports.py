"""What the package may import: never torch in the engine, never against the direction of the rooms, nothing heavy."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lightvllm

ROOT = Path(lightvllm.__file__).parent
# A folder imports those to its right, never those to its left.
ROOMS = ["server", "engine", "executor", "worker", "models", "layers", "attention", "kernels"]
# Nothing imports these but themselves; the command line may start them.
LEAVES = {"training", "learn", "deploy", "bench", "cli"}
# What a front process, which has no torch, needs.
WITHOUT_TORCH = [
    "lightvllm",
    "lightvllm.config",
    "lightvllm.sampling_params",
    "lightvllm.outputs",
    "lightvllm.model_config",
    "lightvllm.client",
    "lightvllm.hub",
    "lightvllm.llm",
    "lightvllm.engine",
    "lightvllm.engine.block_pool",
    "lightvllm.engine.core",
    "lightvllm.engine.detokenizer",
    "lightvllm.engine.llm_engine",
    "lightvllm.engine.prefix_cache",
    "lightvllm.engine.request",
    "lightvllm.engine.scheduler",
    "lightvllm.engine.tokenizer",
    "lightvllm.learn",
    "lightvllm.sql",
]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports when it is imported, or ever: those inside functions too."""
    package = path.relative_to(ROOT.parent).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name.split(".")[0] == "lightvllm"}


def room(module: str) -> str:
    """The folder of a module, "" for those at the top of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else ""


FILES = sorted(ROOT.rglob("*.py"))


def edges() -> list[tuple[str, str]]:
    """(importing module, imported module), over the whole package."""
    result = []
    for path in FILES:
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        result += [(name, imported) for imported in imports(path)]
    return result


def test_the_check_sees_imports() -> None:
    """It would be easy to find nothing wrong by finding nothing."""
    found = edges()
    assert ("lightvllm.worker.worker", "lightvllm.models.bare") in found
    assert ("lightvllm.engine.core", "lightvllm.engine.scheduler") in found
    assert {room(module) for module, _ in found} >= {"engine", "executor", "worker", "models", "layers", "attention"}


def test_rooms_import_in_one_direction() -> None:
    """The one exception are the messages between engine and workers: `engine.step`, which imports no room."""
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in edges()
        if room(importer) in ROOMS
        and room(imported) in ROOMS
        and ROOMS.index(room(imported)) < ROOMS.index(room(importer))
        and not imported.startswith("lightvllm.engine.step")
    ]
    assert not wrong
    assert not any(room(imported) in ROOMS for imported in imports(ROOT / "engine" / "step.py"))


def test_only_their_own_room_imports_the_leaves() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, imported in edges()
        if room(imported) in LEAVES
        and room(importer) not in {room(imported), "cli"}
        # What `bench steps` measures first are loops of `learn`.
        and (room(importer), room(imported)) != ("bench", "learn")
    ]
    assert not wrong


def test_the_client_stands_alone() -> None:
    """A program that only speaks to a server carries nothing of the engine."""
    assert not [(a, b) for a, b in edges() if room(a) == "client" and room(b) != "client"]


def test_no_import_of_torch_in_the_engine() -> None:
    """Not even inside a function."""
    for path in [file for name in ("engine", "sql", "client") for file in (ROOT / name).glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] == "torch"], path


@pytest.mark.parametrize("blocked", ["torch", "transformers"])
def test_the_front_runs_without(blocked: str) -> None:
    """In a process where the import fails, as where it is not installed."""
    program = f"import sys; sys.modules[{blocked!r}] = None\nimport importlib\n"
    program += f"for name in {WITHOUT_TORCH!r}: importlib.import_module(name)\n"
    program += "from lightvllm import SamplingParams, RequestOutput; SamplingParams(temperature=0)"
    result = run(program)
    assert result.returncode == 0, result.stderr


def test_importing_the_api_does_not_load_torch() -> None:
    program = "import sys, lightvllm; lightvllm.LLM, lightvllm.SamplingParams, lightvllm.RequestOutput\n"
    program += "print(sorted({'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    result = run(program)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_learning_needs_no_torch_and_no_matplotlib() -> None:
    """Only a picture needs the second."""
    program = "import sys; from lightvllm import learn; assert learn.batching().table()\n"
    program += "print(sorted({'torch', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)))"
    result = run(program)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_importing_the_package_costs_nothing() -> None:
    program = "import sys; before = set(sys.modules); import lightvllm; print(*set(sys.modules) - before)"
    loaded = {name.split(".")[0] for name in run(program).stdout.split()}
    assert loaded - sys.stdlib_module_names == {"lightvllm"}
    start = time.perf_counter()
    run("pass")
    bare = time.perf_counter() - start
    start = time.perf_counter()
    run("import lightvllm")
    assert time.perf_counter() - start < bare + 0.5  # milliseconds, but on a machine that may be busy


def test_every_name_it_promises_is_there() -> None:
    for name in lightvllm.__all__:
        assert getattr(lightvllm, name)
    with pytest.raises(AttributeError, match="LLMM"):
        lightvllm.LLMM  # noqa: B018
