"""What the verbs share: opening the model that the flags name, and streaming one answer."""

import argparse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lightvllm.cli.flags import given
from lightvllm.config import DEFAULT_MODEL, EngineConfig
from lightvllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightvllm.engine.prompts import Prompt
    from lightvllm.llm import LLM
    from lightvllm.outputs import RequestOutput


def open_llm(args: argparse.Namespace, **options: Any) -> "LLM":
    """The model with the engine options that were given, the default model if none was named.

    Args:
        options: the verb's own choice, over what was given.
    """
    from lightvllm.llm import LLM  # imports torch

    return LLM(**({"model": DEFAULT_MODEL} | given(args, EngineConfig) | options))


def sampling_params(llm: "LLM", args: argparse.Namespace, **options: Any) -> SamplingParams:
    """The parameters that were given, over the verb's own, which are `options`, over the model's."""
    return SamplingParams(**(llm.default_sampling_params | options | given(args, SamplingParams)))


def stream(
    llm: "LLM",
    prompt: "Prompt",
    params: SamplingParams,
    *,
    add_special_tokens: bool = True,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Iterator["RequestOutput"]:
    """Run one request; yields its output whenever it grew, the finished one last.

    Args:
        is_cancelled: asked before every step of the engine; once true, the request is given up.

    Raises:
        ValueError: a prompt or parameter that cannot work.
    """
    request_id = next(llm.request_ids)
    llm.engine.add_request(request_id, prompt, params, add_special_tokens=add_special_tokens, stream=True)
    try:
        while llm.engine.has_unfinished_requests() and not is_cancelled():
            yield from llm.engine.step()
    finally:
        llm.engine.abort_request([request_id])


def failure(output: "RequestOutput") -> str | None:
    """What went wrong inside the engine with a request, if anything did."""
    failed = (str(c.stop_reason) for c in output.outputs if c.finish_reason == "error")
    return next(failed, None)
