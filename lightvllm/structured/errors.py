"""The one way in which a structure is refused."""

from lightvllm.errors import ParameterError


def refusal(message: str) -> ParameterError:
    """Of the parameter `structured_outputs`; the message begins with the field that is wrong."""
    return ParameterError("structured_outputs", f"structured_outputs: {message}")
