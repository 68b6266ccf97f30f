"""`lightvllm env`: what this machine has, and which of it the engine uses."""

import argparse
import json
from typing import Any

from lightvllm.cli.parser import Parser, add_verb
from lightvllm.config import DEFAULT_MODEL


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "env", run, "show versions, processor, memory, and the kernels that would be used")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument(
        "--model",
        metavar="TEXT",
        help="say which attention this model would use (default: the model that comes with LightvLLM)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    from lightvllm.bench.machine import describe_machine  # imports torch
    from lightvllm.hub import resolve_model
    from lightvllm.model_config import ModelConfig

    path = resolve_model(args.model) if args.model else DEFAULT_MODEL
    # Whatever is amiss with an installation, this verb is to tell what it can.
    model = ModelConfig.from_pretrained(path) if args.model or path.is_dir() else None
    machine = describe_machine(model)
    print(json.dumps(machine, indent=2) if args.json else _text(machine))
    return 0


def _text(machine: dict[str, Any]) -> str:
    cpu, memory = machine["cpu"], machine["memory"]
    features = "unknown" if cpu["features"] is None else " ".join(cpu["features"])
    lines = [(name, version or "not installed") for name, version in machine["versions"].items()]
    lines += [
        ("platform", machine["platform"]),
        ("processor", f"{cpu['name']}, {cpu['cores']} cores, {cpu['threads']} threads in use"),
        ("features", f"{features} (PyTorch uses {cpu['torch_capability']})"),
        ("memory", f"{memory['total'] / 2**30:.1f} GiB, {memory['available'] / 2**30:.1f} GiB available"),
    ]
    for gpu in machine["gpus"]:
        lines.append(("gpu", f"{gpu['name']}, {gpu['memory'] / 2**30:.1f} GiB, CUDA {gpu['cuda']}"))
    if not machine["gpus"]:
        lines.append(("gpu", "none"))
    lines.append(("CPU kernels", _kernels(machine["cpu_kernels"])))
    if machine["gpu_kernels"]:
        lines.append(("GPU kernels", _gpu_kernels(machine["gpu_kernels"])))
    for device, reasons in machine["attention"].items():
        others = [name for name, reason in reasons.items() if name != "auto" and reason is None]
        lines.append((f"{device} attention", f"{reasons['auto']} (there are {', '.join(others)})"))
    for device, by_dtype in machine["linear"].items():
        lines += [(f"{device} {dtype}", f"linear layers with {how}") for dtype, how in by_dtype.items()]
    return "\n".join(f"{name:16} {value}" for name, value in lines)


def _gpu_kernels(kernels: dict[str, bool]) -> str:
    names = [name for name, key in (("CUDA C++", "compiled"), ("Triton", "triton")) if kernels[key]]
    return " and ".join(names) or "reference: neither was CUDA C++ built, nor is Triton there"


def _kernels(kernels: dict[str, Any]) -> str:
    if not kernels["compiled"]:
        return "reference: not built"
    names = {"avx512vnni": "avx512 + bf16 + vnni", "amx": "amx, avx512 + bf16 + vnni"}
    isa, best = (names.get(kernels[key], kernels[key]) for key in ("isa", "best_isa"))
    return f"compiled, {isa}" + ("" if isa == best else f" (the processor has {best})")
