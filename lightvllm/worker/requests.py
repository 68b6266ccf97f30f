"""The worker's memory of its requests: one row each in arrays, so that a step's inputs are a few vectorised lookups."""

from dataclasses import dataclass

import numpy as np

from lightvllm.engine.step import NewRequest


@dataclass(frozen=True)
class StepBatch:
    """One step's requests and tokens, in the order of `StepInput.request_ids`, tokens end to end.

    Attributes:
        rows: [num_requests] rows of `RequestRows`.
        query_lens: [num_requests] tokens computed in this step.
        seq_lens: [num_requests] tokens computed after it.
        samples: [num_requests] bool: this step reaches the request's last token, so it samples the next.
        token_ids: [num_tokens] int64; -1 - row for the last token of a row whose token only the device knows.
        positions: [num_tokens] int64
        lengths: [num_tokens] int64, the sequence length each token counts as computed at: its prompt's, or for a
            generated token its own position + 1; the same however the prompt was cut into chunks.
        slot_mapping: [num_tokens] int64, the token's place in the KV cache.
    """

    rows: np.ndarray
    query_lens: np.ndarray
    seq_lens: np.ndarray
    samples: np.ndarray
    token_ids: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    slot_mapping: np.ndarray


class RequestRows:
    """Tokens, counts and block tables of every request the worker knows."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int) -> None:
        self.block_size = block_size
        self.row_of: dict[str, int] = {}
        self.free_rows = list(range(max_num_seqs - 1, -1, -1))
        # Zeroed pages cost nothing until they are written, so these may be large.
        self.token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self.block_table = np.zeros((max_num_seqs, -(-max_model_len // block_size)), dtype=np.int32)
        self.num_blocks = [0] * max_num_seqs
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_computed_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.ends_unknown = np.zeros(max_num_seqs, dtype=bool)  # the last token was sampled and is not here

    def add(self, request: NewRequest) -> int:
        """Take a request in and return its row."""
        assert request.request_id not in self.row_of, f"{request.request_id} is known already"
        row = self.row_of[request.request_id] = self.free_rows.pop()
        self.token_ids[row, : len(request.token_ids)] = request.token_ids
        self.num_tokens[row] = len(request.token_ids)
        self.num_prompt_tokens[row] = request.num_prompt_tokens
        self.num_computed_tokens[row] = request.num_computed_tokens
        self.num_blocks[row] = 0
        self.ends_unknown[row] = False
        self.append_blocks(request.request_id, request.block_ids)
        return row

    def append_blocks(self, request_id: str, block_ids: list[int]) -> None:
        """Lengthen a request's block table."""
        row = self.row_of[request_id]
        start = self.num_blocks[row]
        self.block_table[row, start : start + len(block_ids)] = block_ids
        self.num_blocks[row] = start + len(block_ids)

    def drop(self, request_id: str) -> int | None:
        """Forget a request and return the row it had, None if it was not known."""
        row = self.row_of.pop(request_id, None)
        if row is not None:
            self.free_rows.append(row)
        return row

    def batch(self, request_ids: list[str], num_scheduled_tokens: list[int]) -> StepBatch:
        """A step's inputs: so many tokens of each of these requests."""
        rows = np.array([self.row_of[request_id] for request_id in request_ids], dtype=np.int64)
        query_lens = np.array(num_scheduled_tokens, dtype=np.int64)
        first = self.num_computed_tokens[rows]
        seq_lens = first + query_lens
        ends = np.cumsum(query_lens)
        token_rows = np.repeat(rows, query_lens)
        positions = np.arange(ends[-1]) + np.repeat(first - (ends - query_lens), query_lens)
        blocks = self.block_table[token_rows, positions // self.block_size].astype(np.int64)
        samples = seq_lens == self.num_tokens[rows]
        token_ids = self.token_ids[token_rows, positions].astype(np.int64)
        unknown = self.ends_unknown[rows] & samples
        token_ids[ends[unknown] - 1] = -1 - rows[unknown]
        return StepBatch(
            rows=rows,
            query_lens=query_lens,
            seq_lens=seq_lens,
            samples=samples,
            token_ids=token_ids,
            positions=positions,
            lengths=np.maximum(self.num_prompt_tokens[token_rows], positions + 1),
            slot_mapping=blocks * self.block_size + positions % self.block_size,
        )

    def advance(self, batch: StepBatch, sampled: np.ndarray | None) -> None:
        """Take a step for done: its tokens are computed, and of each request that sampled there is one more.

        Args:
            sampled: [number of batch.samples] these tokens; None where only the device knows them. They never come
                here then: who needs the tokens before, such as a penalty, is not sampled there.
        """
        self.num_computed_tokens[batch.rows] = batch.seq_lens
        rows = batch.rows[batch.samples]
        position = self.num_tokens[rows]
        self.num_tokens[rows] += 1
        self.ends_unknown[rows] = sampled is None
        if sampled is not None:
            fits = position < self.token_ids.shape[1]  # a full request ends here; its last token needs no place
            self.token_ids[rows[fits], position[fits]] = sampled[fits]
