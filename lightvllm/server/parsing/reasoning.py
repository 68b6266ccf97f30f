"""Telling reasoning from the answer."""

from typing import Literal

from lightvllm.server.parsing.formats import ReasoningFormat

# open: the prompt has opened <think>, so the output begins within reasoning.
# possible: the output is reasoning if it begins with <think>.
# off: the whole output is the answer.
ReasoningState = Literal["open", "possible", "off"]


def reasoning_state(
    reasoning_format: ReasoningFormat | None, prompt: str, continued_message: str | None = None
) -> ReasoningState:
    """Where the output begins, by how the prompt ends.

    Args:
        reasoning_format: how this model marks reasoning.
        prompt: the rendered prompt's text.
        continued_message: with `continue_final_message`, the text of the message that the output continues.
    """
    raise NotImplementedError
