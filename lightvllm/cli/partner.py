"""Who answers in a chat: a model in this process, or one behind a server. The conversation is the same with both."""

import argparse
import contextlib
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from lightvllm.cli.flags import given
from lightvllm.cli.model import failure, stream
from lightvllm.config import EngineConfig
from lightvllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lightvllm.client import Client
    from lightvllm.llm import LLM

Message = dict[str, str]


@dataclass(frozen=True)
class Piece:
    """What an answer got.

    Attributes:
        num_tokens: of the answer so far.
        is_reasoning: what the model thinks before it answers, and no part of the answer.
    """

    text: str
    num_tokens: int
    is_reasoning: bool = False


class Stopped(Exception):
    """Ctrl-C stopped an answer that was waited for."""


class Partner(Protocol):
    """Who answers."""

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """The answer as it comes. While it lasts the first Ctrl-C stops it, and the next one the program.

        Raises:
            ValueError: there is none, in words; the next one may be better.
            Stopped: Ctrl-C came; or the pieces just end.
        """
        ...


class LocalPartner:
    """A model in this process.

    Raises:
        ValueError: the model has no chat template.
    """

    def __init__(self, llm: "LLM", params: SamplingParams) -> None:
        self.llm = llm
        self.params = params
        self._render([{"role": "user", "content": "Hello"}])  # one that cannot chat says so before anyone types

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """See `Partner.answer`. It stops between two steps of the engine."""
        length, output = 0, None
        prompt = self._render(messages)
        with _on_interrupt(lambda: None) as is_interrupted:
            for output in stream(self.llm, prompt, self.params, add_special_tokens=False, is_cancelled=is_interrupted):
                completion = output.outputs[0]
                yield Piece(completion.text[length:], len(completion.token_ids))
                length = len(completion.text)
        why = None if output is None else failure(output)
        if why is not None:
            raise ValueError(why)

    def _render(self, messages: list[Message]) -> str:
        return self.llm.get_tokenizer().apply_chat_template(messages, chat_template=self.llm.chat_template)


class RemotePartner:
    """A model behind a server.

    Args:
        options: fields of the request: sampling parameters.

    Raises:
        ValueError: the server cannot be reached, or lets nobody in without a key.
    """

    def __init__(self, client: "Client", options: dict[str, Any]) -> None:
        self.client = client
        self.options = options
        with _in_words():
            client.models()  # one that is not there says so before anyone types

    def answer(self, messages: list[Message]) -> Generator[Piece, None, None]:
        """See `Partner.answer`. It stops at once, whatever the server is at."""
        num_tokens = 0
        with (
            _on_interrupt(_stop),
            _in_words(),
            self.client.stream_chat(messages, **self.options) as deltas,
        ):
            for delta in deltas:
                num_tokens += bool(delta.reasoning or delta.text)  # until the server has counted
                if delta.reasoning:
                    yield Piece(delta.reasoning, num_tokens, is_reasoning=True)
                if delta.text:
                    yield Piece(delta.text, num_tokens)
        if deltas.usage is not None and deltas.usage.completion_tokens is not None:
            yield Piece("", deltas.usage.completion_tokens)


def server_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that the flags give.

    Raises:
        ValueError: a flag that a server has to be started with.
    """
    engine = given(args, EngineConfig)
    model = engine.pop("model", None)
    for name in engine:
        raise ValueError(f"{name}: not to be given with --url: it is for the server to set, when it starts")
    return ({} if model is None else {"model": model}) | given(args, SamplingParams)


def _stop() -> NoReturn:
    raise Stopped


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """The client's errors as those that the command line shows."""
    from lightvllm.client import APIError

    try:
        yield
    except APIError as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def _on_interrupt(act: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """While it lasts the first Ctrl-C does only this, and the given function tells; the next one interrupts as ever."""
    caught = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal caught
        if caught:
            raise KeyboardInterrupt
        caught = True
        act()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: caught
    finally:
        signal.signal(signal.SIGINT, before)
