"""Grammars in the sampler: the exact mask, many rows at once, and what was written before."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightvllm.engine.step import NewRequest
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams
from lightvllm.structured.matcher import load_tokenizer
from lightvllm.worker.grammars import Grammars
from lightvllm.worker.sampler import Sampler, SamplerOutput
from lightvllm.worker.sampling_state import SamplingState
from tests.e2e.checkpoint import EOS_IDS, byte_tokenizer

VOCAB_SIZE = 300  # more than the tokenizer has
LARGEST = 264  # its last token, "and"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


def params(**arguments: object) -> SamplingParams:
    structure = {name: arguments.pop(name) for name in ("regex", "choice") if name in arguments}
    structured = StructuredOutputsParams(**structure) if structure else None  # type: ignore[arg-type]
    return SamplingParams(**{"temperature": 0, "structured_outputs": structured, **arguments})  # type: ignore[arg-type]


class Rows:
    """Running requests, each in the row of its number plus two."""

    def __init__(self, folder: Path, requests: list[SamplingParams], outputs: list[str] | None = None) -> None:
        self.grammars = Grammars(VOCAB_SIZE, lambda: load_tokenizer(folder, VOCAB_SIZE))
        self.state = SamplingState(len(requests) + 2, VOCAB_SIZE, self.grammars)
        self.known = [[65, *text.encode()] for text in outputs or [""] * len(requests)]
        for i, one in enumerate(requests):
            stops = [*([] if one.ignore_eos else EOS_IDS), *(one.stop_token_ids or [])]
            request = NewRequest(str(i), self.known[i], 1, 0, [], one, i, stops, EOS_IDS)
            self.state.add(i + 2, one, i, stops, 1)
            self.grammars.add(i + 2, request)

    def sample(self, logits: np.ndarray, entries: list[int] | None = None) -> SamplerOutput:
        entries = list(range(len(self.known))) if entries is None else entries
        token_ids = np.zeros((len(self.known) + 2, 64), np.int32)
        for i, known in enumerate(self.known):
            token_ids[i + 2, : len(known)] = known
        rows, lengths = np.array(entries) + 2, np.array([len(self.known[i]) for i in entries])
        output = Sampler(self.state).sample(torch.from_numpy(logits[entries]), rows, token_ids, lengths)
        for i, token_id in zip(entries, output.token_ids.tolist(), strict=True):
            self.known[i].append(token_id)
        return output


def test_exactly_what_fits_can_be_chosen(folder: Path) -> None:
    """The token that would be chosen is forbidden, again and again, until none is left."""
    for written, expected in {"": {"t", "th", "the", "i", "in"}, "the": {"", "i", "in"}, "thein": {""}}.items():
        found = set()
        logits = np.random.default_rng(0).normal(size=(1, VOCAB_SIZE)).astype(np.float32)
        while True:
            output = Rows(folder, [params(regex="(the)?(in)?" if written else "(the|in)(in)?")], [written]).sample(
                logits
            )
            if output.errors:
                break
            token_id = int(output.token_ids[0])
            found.add("" if token_id in EOS_IDS else byte_tokenizer().decode([token_id]))
            logits[0, token_id] = -np.inf
        assert found == expected
        assert "all -inf" in output.errors[0] or "no token is left" in output.errors[0]


def test_ids_without_a_token_are_never_chosen(folder: Path) -> None:
    logits = np.zeros((1, VOCAB_SIZE), np.float32)
    logits[0, LARGEST + 1 :] = 50
    logits[0, 256] = 40  # <|im_start|>, which is no text
    assert Rows(folder, [params(regex="(.|\\n)*")]).sample(logits).token_ids[0] <= LARGEST
    free = Rows(folder, [params(regex="(.|\\n)*", temperature=1.0)])
    for _ in range(20):
        assert free.sample(logits).token_ids[0] <= LARGEST


def test_rows_do_not_meddle(folder: Path) -> None:
    """Greedy, random and free rows, in a batch and alone, step by step."""
    requests = [
        params(regex="[a-z]{2,9}"),
        params(),
        params(regex="[0-9]{2,9}", temperature=1.0, seed=1),
        params(temperature=1.0),
        params(choice=["yes", "no"], temperature=1.0, logprobs=2),
    ] * 3
    rng = np.random.default_rng(1)
    together, alone = Rows(folder, requests), Rows(folder, requests)
    for _ in range(2):
        logits = rng.normal(size=(len(requests), VOCAB_SIZE)).astype(np.float32)
        batch = together.sample(logits)
        for i in range(len(requests)):
            single = alone.sample(logits, [i])
            assert single.token_ids[0] == batch.token_ids[i]
            assert single.logprobs.get(0) == batch.logprobs.get(i)
    texts = [byte_tokenizer().decode(known[1:]) for known in together.known]
    assert all(text.isalpha() for text in texts[::5])
    assert all(text.isdigit() for text in texts[2::5])


def test_what_was_written_counts(folder: Path) -> None:
    """A request that comes back goes on as the one that stayed."""
    rng = np.random.default_rng(2)
    stayed = Rows(folder, [params(regex="(th|in)+e[0-9]{3}x", temperature=1.0)])
    for _ in range(8):
        logits = rng.normal(size=(1, VOCAB_SIZE)).astype(np.float32)
        back = Rows(folder, [params(regex="(th|in)+e[0-9]{3}x", temperature=1.0)])
        back.grammars.remove(2)
        back.known = [list(stayed.known[0])]
        back.grammars.add(
            2, NewRequest("0", back.known[0], 1, 0, [], params(regex="(th|in)+e[0-9]{3}x"), 0, [], EOS_IDS)
        )
        assert back.sample(logits).token_ids.tolist() == stayed.sample(logits).token_ids.tolist()


def test_unwanted_ends(folder: Path) -> None:
    """While something else fits, an end waits for min_tokens and for ever if it is ignored; then it comes."""
    eager = np.zeros((4, VOCAB_SIZE), np.float32)
    eager[:, EOS_IDS] = 9
    requests = [params(regex="a*", **more) for more in ({}, {"min_tokens": 3}, {"ignore_eos": True})]
    rows = Rows(folder, [*requests, params(regex="", min_tokens=3)])
    assert rows.sample(eager).token_ids.tolist() == [EOS_IDS[0], ord("a"), ord("a"), EOS_IDS[0]]
    late = Rows(folder, [*requests, params(regex="aaa", ignore_eos=True)], ["aaa"] * 4)
    assert late.sample(eager).token_ids.tolist() == [EOS_IDS[0], EOS_IDS[0], ord("a"), EOS_IDS[0]]


def test_errors_are_of_their_row(folder: Path) -> None:
    logits = np.random.default_rng(3).normal(size=(3, VOCAB_SIZE)).astype(np.float32)
    rows = Rows(folder, [params(regex="a"), params(regex="a"), params()], ["b", "", ""])
    output = rows.sample(logits)
    assert list(output.errors) == [0]
    assert "cannot be followed" in output.errors[0]
    assert output.token_ids.tolist() == [-1, ord("a"), int(logits[2].argmax())]


def test_without_a_tokenizer_the_request_fails_alone(tmp_path: Path) -> None:
    logits = np.zeros((2, VOCAB_SIZE), np.float32)
    output = Rows(tmp_path, [params(regex="a"), params()]).sample(logits)
    assert "tokenizer.json" in output.errors[0]
    assert output.token_ids[1] == 0


ENDS_AMID_THE_LOAD = """
import sys
import threading
import time
from llguidance import LLTokenizer, TokenizerWrapper
from lightvllm.structured.check import _Bytes
from lightvllm.worker.grammars import Grammars

class Lingering:  # the end of a program that has much to take down
    def __del__(self, sleep=time.sleep):
        sleep(0.5)

class Slow(TokenizerWrapper):
    def __getattribute__(self, name):  # Rust asks for what it needs
        loads.set()
        time.sleep(0.1)
        return super().__getattribute__(name)

sys.lingering, loads, tokenizer = Lingering(), threading.Event(), TokenizerWrapper(_Bytes())
tokenizer.__class__ = Slow
Grammars(256, lambda: LLTokenizer(tokenizer))
loads.wait()
"""


def test_a_program_may_end_while_the_tokenizer_loads() -> None:
    """Its thread is amid Rust then, and waits to come back from there."""
    done = subprocess.run([sys.executable, "-c", ENDS_AMID_THE_LOAD], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
