"""LightvLLM: a readable LLM inference and serving engine.

Names are imported on first use, so that `import lightvllm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightvllm.llm import LLM as LLM
    from lightvllm.models.bare import LightvLLM as LightvLLM
    from lightvllm.outputs import CompletionOutput as CompletionOutput
    from lightvllm.outputs import RequestOutput as RequestOutput
    from lightvllm.sampling_params import SamplingParams as SamplingParams

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "lightvllm.llm",
    "LightvLLM": "lightvllm.models.bare",
    "CompletionOutput": "lightvllm.outputs",
    "RequestOutput": "lightvllm.outputs",
    "SamplingParams": "lightvllm.sampling_params",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lightvllm' has no attribute {name!r}")
