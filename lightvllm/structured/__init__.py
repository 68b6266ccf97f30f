"""Structured output: grammars under which an output's text has the form that a request asks for. No torch.

The front checks what users send (`check_structured_outputs`); the worker follows each output through its grammar
(`lightvllm.structured.matcher`).
"""

from lightvllm.structured.check import check_structured_outputs

__all__ = ["check_structured_outputs"]
