"""The log-probabilities a request asks to see, under the model's own distribution."""

import torch
from torch import Tensor

from lightvllm.engine.step import TokenLogprobs
from lightvllm.kernels import gpu
from lightvllm.worker.ranking import largest

# Rows whose log-probabilities are computed at once: bounds the memory that a long prompt takes.
_ROWS_AT_ONCE = 64


def prompt_logprobs(logits: Tensor, next_token_ids: Tensor, num_logprobs: int) -> list[TokenLogprobs]:
    """Log-probabilities of the tokens that follow in a prompt.

    Args:
        logits: # [num_positions, vocab_size]; as the model gave them, any float type.
        next_token_ids: # [num_positions]; the token after each position.
        num_logprobs: how many of the most likely tokens to report; -1 is the whole vocabulary.

    Returns:
        One entry for each position.
    """
    wanted = logits.shape[1] if num_logprobs == -1 else num_logprobs
    return chosen_logprobs(logits, next_token_ids, [wanted] * len(logits))


def chosen_logprobs(logits: Tensor, chosen: Tensor, num_logprobs: list[int]) -> list[TokenLogprobs]:
    """Log-probabilities of the chosen token of each row, and of the `num_logprobs` most likely ones of that row.

    The rank of a token is one more than the number of tokens that are strictly more likely.

    Args:
        logits: # [num_rows, vocab_size]; as the model gave them, any float type.
        chosen: # [num_rows] int64
        num_logprobs: one for each row.
    """
    entries: list[TokenLogprobs] = []
    for start in range(0, len(logits), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        entries += _some_logprobs(logits[part], chosen[part], num_logprobs[part])
    return entries


def _some_logprobs(logits: Tensor, chosen: Tensor, num_logprobs: list[int]) -> list[TokenLogprobs]:
    logprobs = _log_softmax(logits)
    own = logprobs.gather(-1, chosen[:, None])
    ranks = (logprobs > own).sum(dim=-1).add_(1).tolist()
    values, token_ids = largest(logprobs, max(num_logprobs))
    all_ids = torch.cat([chosen[:, None], token_ids], dim=-1).tolist()
    all_values = torch.cat([own, values], dim=-1).tolist()
    return [
        TokenLogprobs(ids[: wanted + 1], values[: wanted + 1], rank)
        for ids, values, rank, wanted in zip(all_ids, all_values, ranks, num_logprobs, strict=True)
    ]


def _log_softmax(logits: Tensor) -> Tensor:
    """# [num_rows, vocab_size] float32; a row's bits depend on no other row, nor on where it lies."""
    if logits.is_cuda and gpu.has_triton():
        from lightvllm.kernels.triton.invariant import log_softmax

        return log_softmax(logits)
    return torch.log_softmax(logits.float(), dim=-1)
