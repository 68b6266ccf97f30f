"""From a text to calibration sequences. Imports no torch."""

from lightvllm.engine.tokenizer import Tokenizer


def text_sequences(text: str, tokenizer: Tokenizer, samples: int, length: int) -> list[list[int]]:
    """Up to `samples` stretches of `length` tokens, evenly spread over the text; a shorter text is one stretch.

    Raises:
        ValueError: there is no text, or a number is out of range.
    """
    check_amount(samples, length)
    token_ids = tokenizer.encode(text)
    if not token_ids:
        raise ValueError("calibration: the text is empty")
    available = max(1, len(token_ids) // length)
    count = min(samples, available)
    starts = [i * available // count * length for i in range(count)]
    return [token_ids[start : start + length] for start in starts]


def check_amount(samples: int, length: int) -> None:
    """Raise a ValueError unless both numbers are positive."""
    for name, value in (("samples", samples), ("length", length)):
        if value < 1:
            raise ValueError(f"{name}: {value} is out of range, expected at least 1")
