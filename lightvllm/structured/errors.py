"""The ways in which a structure is refused."""

from lightvllm.errors import ParameterError


class Unenforceable(ParameterError):
    """Nothing is wrong with the structure, but it cannot be enforced, or not in good time."""


def refusal(message: str) -> ParameterError:
    """Of the parameter `structured_outputs`; the message begins with the field that is wrong."""
    return ParameterError("structured_outputs", f"structured_outputs: {message}")


def unenforceable(message: str) -> Unenforceable:
    """As `refusal`."""
    return Unenforceable("structured_outputs", f"structured_outputs: {message}")
