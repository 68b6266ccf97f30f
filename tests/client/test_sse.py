"""The events of a stream are the same, wherever its bytes were cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvllm.client.sse import EventDecoder


def decode(stream: bytes, cuts: list[int] | None = None) -> list[bytes]:
    decoder, events, start = EventDecoder(), [], 0
    for cut in [*sorted(cuts or []), len(stream)]:
        events += decoder.feed(stream[start:cut])
        start = cut
    return events


STREAM = (
    '\ufeff: a comment\r\n\r\nevent: x\r\ndata: {"text": "naïve 🙂"}\r\n\r\n'
    "data: one\ndata: two\n\n:\nid: 4\ndata:no space\n\ndata:  a space of its own\r\rdata\n\ndata: \r\n\r\n"
    "retry: 3\n\ndata: [DONE]\n\ndata: without its end"
).encode()
EVENTS = ['{"text": "naïve 🙂"}'.encode(), b"one\ntwo", b"no space", b" a space of its own", b"", b"", b"[DONE]"]


def test_events() -> None:
    assert decode(STREAM) == EVENTS


def test_cut_at_every_byte() -> None:
    assert decode(STREAM, list(range(len(STREAM)))) == EVENTS


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_cut_at_one_byte(cut: int) -> None:
    assert decode(STREAM, [cut]) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_cut_anywhere(cuts: list[int]) -> None:
    assert decode(STREAM, cuts) == EVENTS


def test_an_event_comes_with_its_last_byte() -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: a\r") == []
    assert decoder.feed(b"\n\r") == [b"a"]  # the second line end may be this \r alone
    assert decoder.feed(b"\ndata: b\n") == []
    assert decoder.feed(b"\n") == [b"b"]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), min_size=1), st.data())
def test_what_is_sent_is_what_comes(texts: list[str], data: st.DataObject) -> None:
    ends = data.draw(st.lists(st.sampled_from(["\n", "\r", "\r\n"]), min_size=len(texts), max_size=len(texts)))
    stream = "".join(f"data: {text}{end}{end}" for text, end in zip(texts, ends, strict=True)).encode()
    cuts = data.draw(st.lists(st.integers(0, len(stream))))
    assert decode(stream, cuts) == [text.encode() for text in texts]
