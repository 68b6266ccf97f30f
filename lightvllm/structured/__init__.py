"""Structured output: grammars under which an output's text has the form that a request asks for. No torch.

The front checks what users send (`check_structured_outputs`); the worker follows each output through its grammar
(`lightvllm.structured.matcher`).
"""

from lightvllm.sampling_params import StructuredOutputsParams


def check_structured_outputs(params: StructuredOutputsParams) -> None:
    """See `lightvllm.structured.check.check_structured_outputs`; its first call imports llguidance."""
    from lightvllm.structured.check import check_structured_outputs as check

    check(params)
