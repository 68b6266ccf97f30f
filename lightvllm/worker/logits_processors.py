"""What requests ask to change in their logits before a token is chosen. Each works on all the rows that ask, at once.

The changes are written into the logits they are given. All are element-wise, so a row's result does not depend on the
other rows, bit for bit.
"""

import numpy as np
import torch
from torch import Tensor

from lightvllm.worker.sampling_state import (
    ALLOWED_TOKEN_IDS,
    BAD_WORDS,
    GRAMMAR,
    LOGIT_BIAS,
    MIN_TOKENS,
    OUTPUT_PENALTIES,
    REPETITION_PENALTY,
    SamplingBatch,
)


def process_logits(logits: Tensor, batch: SamplingBatch) -> None:
    """Apply allowed_token_ids, structured_outputs, bad_words, min_tokens, logit_bias and penalties.

    The order is vLLM's. Where a grammar leaves only the end, it may come before min_tokens.

    Args:
        logits: # [num_rows, vocab_size] float32, contiguous; changed in place.
        batch: the requests, in the order of the rows.
    """
    wanted = int(np.bitwise_or.reduce(batch.features))
    if wanted & ALLOWED_TOKEN_IDS:
        _keep_allowed_token_ids(logits, batch)
    if wanted & GRAMMAR:
        _keep_grammatical(logits, batch)
    if wanted & (BAD_WORDS | MIN_TOKENS):
        _forbid(logits, _last_of_bad_words(batch) + _early_stop_token_ids(batch))
    if wanted & LOGIT_BIAS:
        _add_bias(logits, batch)
    if wanted & REPETITION_PENALTY:
        _penalize_repetition(logits, batch)
    if wanted & OUTPUT_PENALTIES:
        _penalize_output(logits, batch)


def _keep_allowed_token_ids(logits: Tensor, batch: SamplingBatch) -> None:
    asking = batch.entries_with(ALLOWED_TOKEN_IDS)
    forbidden = torch.ones(len(asking), logits.shape[1], dtype=torch.bool, device=logits.device)
    allowed = [(i, batch.state.allowed_token_ids[row]) for i, row in enumerate(batch.rows[asking])]
    forbidden.view(-1)[_places(logits, *_concatenated(allowed))] = False
    entries = torch.from_numpy(asking).to(logits.device)
    logits[entries] = logits[entries].masked_fill_(forbidden, -torch.inf)


def _keep_grammatical(logits: Tensor, batch: SamplingBatch) -> None:
    asking = batch.entries_with(GRAMMAR)
    early = dict(_early_stop_token_ids(batch, GRAMMAR))
    unwanted = [early.get(entry, np.empty(0, np.int64)) for entry in asking.tolist()]
    assert batch.state.grammars is not None
    masks = batch.state.grammars.masks(batch.rows[asking].tolist(), unwanted)
    packed = torch.from_numpy(masks.view(np.uint8)).to(logits.device)[:, :, None]  # eight tokens in each
    bits = packed >> torch.arange(8, dtype=torch.uint8, device=logits.device) & 1
    forbidden = bits.view(len(asking), -1)[:, : logits.shape[1]] == 0
    entries = torch.from_numpy(asking).to(logits.device)
    logits[entries] = logits[entries].masked_fill_(forbidden, -torch.inf)


def _last_of_bad_words(batch: SamplingBatch) -> list[tuple[int, np.ndarray]]:
    """For each entry the tokens that would complete one of its bad words, all but the last already in its output."""
    found = []
    for entry in batch.entries_with(BAD_WORDS):
        row, end = batch.rows[entry], batch.num_tokens[entry]
        output = batch.token_ids[row, batch.state.num_prompt_tokens[row] : end]
        last = [
            word[-1]
            for word in batch.state.bad_words[row]
            if len(word) - 1 <= len(output) and output[len(output) - len(word) + 1 :].tolist() == word[:-1]
        ]
        found.append((entry, np.array(last, np.int64)))
    return found


def _early_stop_token_ids(batch: SamplingBatch, grammar: int = 0) -> list[tuple[int, np.ndarray]]:
    """For each entry that has not its `min_tokens` yet, the tokens that would end it.

    Only for those that have a grammar, or those that have none: a grammar may leave nothing but the end.
    """
    state, rows = batch.state, batch.rows
    early = batch.num_tokens - state.num_prompt_tokens[rows] < state.min_tokens[rows]
    early &= (batch.features & GRAMMAR) == grammar
    asking = batch.entries_with(MIN_TOKENS).tolist()
    return [(entry, state.stop_token_ids[rows[entry]]) for entry in asking if early[entry]]


def _forbid(logits: Tensor, token_ids_of: list[tuple[int, np.ndarray]]) -> None:
    logits.view(-1).index_fill_(0, _places(logits, *_concatenated(token_ids_of)), -torch.inf)


def _add_bias(logits: Tensor, batch: SamplingBatch) -> None:
    biases = [(entry, *batch.state.logit_bias[batch.rows[entry]]) for entry in batch.entries_with(LOGIT_BIAS)]
    places = _places(logits, *_concatenated([(entry, token_ids) for entry, token_ids, _ in biases]))
    logits.view(-1)[places] += torch.from_numpy(np.concatenate([values for _, _, values in biases])).to(logits.device)


def _penalize_repetition(logits: Tensor, batch: SamplingBatch) -> None:
    asking = batch.entries_with(REPETITION_PENALTY)
    i, token_ids = _known_tokens(batch, asking, np.zeros(len(asking), np.int64))
    penalty = torch.from_numpy(batch.state.repetition_penalty[batch.rows[asking]][i]).to(logits.device)
    places = _places(logits, asking[i], token_ids)
    known = logits.take(places)
    logits.view(-1).scatter_(0, places, torch.where(known > 0, known / penalty, known * penalty))


def _penalize_output(logits: Tensor, batch: SamplingBatch) -> None:
    """Frequency and presence penalties."""
    asking = batch.entries_with(OUTPUT_PENALTIES)
    state, rows = batch.state, batch.rows[asking]
    i, token_ids = _known_tokens(batch, asking, state.num_prompt_tokens[rows])
    compact = _places(logits, i, token_ids)  # in the rows that ask alone
    counts = torch.zeros(len(asking) * logits.shape[1], device=logits.device)
    counts.scatter_add_(0, compact, torch.ones_like(compact, dtype=torch.float32))
    frequency = torch.from_numpy(state.frequency_penalty[rows][i]).to(logits.device)
    presence = torch.from_numpy(state.presence_penalty[rows][i]).to(logits.device)
    places = _places(logits, asking[i], token_ids)
    logits.view(-1).scatter_(0, places, logits.take(places) - frequency * counts[compact] - presence)


def _known_tokens(batch: SamplingBatch, asking: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The known tokens of the asking entries from position `first` on, as parallel arrays: index into `asking`, token.

    A token known twice is there twice. Both write the same logit, computed from what was there before.
    """
    ends = batch.num_tokens[asking]
    known = [batch.token_ids[row, start:end] for row, start, end in zip(batch.rows[asking], first, ends, strict=True)]
    return np.repeat(np.arange(len(asking)), ends - first), np.concatenate(known)


def _concatenated(token_ids_of: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(entry, its token ids) pairs as two parallel arrays."""
    entries = np.array([entry for entry, _ in token_ids_of], np.int64)
    lengths = np.array([len(token_ids) for _, token_ids in token_ids_of], np.int64)
    nothing = np.empty(0, np.int64)
    return np.repeat(entries, lengths), np.concatenate([nothing, *(token_ids for _, token_ids in token_ids_of)])


def _places(logits: Tensor, entries: np.ndarray, token_ids: np.ndarray) -> Tensor:
    """Where in the flattened logits the tokens of the entries are. # [num_tokens] int64"""
    return torch.from_numpy(entries * logits.shape[1] + token_ids).to(logits.device)
