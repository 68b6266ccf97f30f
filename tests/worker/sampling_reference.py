"""The sampler's oracle: the same steps for one request, in plain numpy, one token after the other."""

from dataclasses import dataclass, field

import numpy as np
import torch

from lightvllm.sampling_params import SamplingParams
from lightvllm.worker.sampler import Sampler, SamplerOutput
from lightvllm.worker.sampling_state import SamplingState


@dataclass
class Request:
    """One row of a batch."""

    logits: np.ndarray  # [vocab_size] float32
    params: SamplingParams
    seed: int = 0
    prompt: list[int] = field(default_factory=lambda: [0])
    output: list[int] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


def sample(requests: list[Request], device: str = "cpu", dtype: torch.dtype = torch.float32) -> SamplerOutput:
    """All of the requests in one pass, each in a state row that is not its number in the batch."""
    vocab_size = len(requests[0].logits)
    state = SamplingState(max_num_seqs=len(requests) + 3, vocab_size=vocab_size)
    rows = np.array([len(requests) + 2 - i for i in range(len(requests))])
    lengths = np.array([len(request.prompt) + len(request.output) for request in requests])
    token_ids = np.full((len(requests) + 3, lengths.max() + 5), vocab_size - 1, np.int32)  # what is not known is noise
    for row, length, request in zip(rows, lengths, requests, strict=True):
        state.add(row, request.params, request.seed, request.stop_token_ids, len(request.prompt))
        token_ids[row, :length] = request.prompt + request.output
    logits = torch.from_numpy(np.stack([request.logits for request in requests])).to(device, dtype)
    return Sampler(state).sample(logits, rows, token_ids, lengths)


def processed_logits(request: Request) -> np.ndarray:
    """Logits after everything that comes before temperature. # [vocab_size] float64"""
    params = request.params
    logits = request.logits.astype(np.float64)
    if params.allowed_token_ids is not None:
        for token_id in range(len(logits)):
            if token_id not in params.allowed_token_ids:
                logits[token_id] = -np.inf
    for word in params.bad_words_token_ids or []:
        *before, last = word
        if not before or request.output[-len(before) :] == before:
            logits[last] = -np.inf
    if len(request.output) < params.min_tokens:
        logits[request.stop_token_ids] = -np.inf
    for token_id, bias in (params.logit_bias or {}).items():
        logits[token_id] += bias
    for token_id in set(request.prompt + request.output):
        penalty = params.repetition_penalty
        logits[token_id] = logits[token_id] / penalty if logits[token_id] > 0 else logits[token_id] * penalty
    for token_id in set(request.output):
        logits[token_id] -= params.frequency_penalty * request.output.count(token_id) + params.presence_penalty
    return logits


def distribution(request: Request) -> np.ndarray:
    """The probability with which each token is drawn. # [vocab_size] float64"""
    params = request.params
    logits = processed_logits(request)
    if params.is_greedy:
        return np.eye(len(logits))[logits.argmax()]
    scaled = logits / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    probs[probs < params.min_p * probs.max()] = 0
    order = sorted(range(len(probs)), key=lambda token_id: (-probs[token_id], token_id))
    if params.top_k:
        probs[order[params.top_k :]] = 0
    probs /= probs.sum()
    reached = 0.0
    for token_id in order:
        before = reached
        reached += probs[token_id]
        if before >= params.top_p and params.top_p < 1:
            probs[token_id] = 0
    return probs / probs.sum()
