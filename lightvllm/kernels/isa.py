"""Which instruction set the compiled CPU kernels use: one choice for the whole process."""

import torch

from lightvllm.kernels import COMPILED

# As in cpu/common.h, each with all before it. Without any, the kernels run on what every processor of the kind has.
ISAS = ("plain", "avx2", "avx512", "avx512vnni", "amx")


def available_isas() -> tuple[str, ...]:
    """What this processor has; nothing where the kernels were not built."""
    return ISAS[: torch.ops.lightvllm.instruction_sets()[1] + 1] if COMPILED else ()


def current_isa() -> str | None:
    """What the kernels use; None where they were not built."""
    return ISAS[torch.ops.lightvllm.instruction_sets()[0]] if COMPILED else None


def use_isa(name: str) -> None:
    """From now on let every kernel of the process use an instruction set; "auto" is the best there is.

    Raises:
        ValueError: the processor does not have it, or the kernels were not built.
    """
    available = available_isas()
    if name == "auto":
        if not available:
            return
        name = available[-1]
    if not available:
        raise ValueError(f"cpu_isa: {name!r} needs the compiled CPU kernels, which were not built; expected auto")
    if name not in available:
        raise ValueError(f"cpu_isa: this processor has no {name!r}, expected auto or one of {', '.join(available)}")
    torch.ops.lightvllm.set_instruction_set(ISAS.index(name))
