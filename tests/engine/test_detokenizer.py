"""The detokenizer: what it hands out piece by piece is the batch decode, cut at the stop string."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from lightvllm.engine.detokenizer import (
    ByteLevelText,
    CleanText,
    Detokenizer,
    PieceText,
    StopMatcher,
    WindowText,
    stop_matcher,
    text_stream,
)
from lightvllm.engine.tokenizer import BYTE_TOKEN, Tokenizer, clean_up
from tests.engine.tokenizer_folders import BACKENDS, CORPUS, metaspace, word_piece

KINDS = {
    "byte_level": ByteLevelText,
    "byte_level_with_bos": ByteLevelText,
    "byte_fallback": PieceText,
    "metaspace": WindowText,
    "word_piece": WindowText,
    "word_level": WindowText,
}


def make(backend: Backend, **options: bool) -> Tokenizer:
    return Tokenizer(backend, special_tokens={}, chat_templates={}, **options)


def tokenizers() -> dict[str, Tokenizer]:
    made = {name: make(backend()) for name, backend in BACKENDS.items()}
    made["clean-up"] = make(word_piece(), clean_up_spaces=True)
    made["clean-up of a Unigram"] = make(metaspace(), clean_up_spaces=True)
    return made


TOKENIZERS = tokenizers()
BYTE_LEVEL = TOKENIZERS["byte_level"]
TEXT = st.text(
    st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aé\u0301你😀👨\u200d👩 '.nt\n")), max_size=30
)


def chunked(items: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """`items` in chunks of the given sizes, over and over."""
    chunks, start, i = [], 0, 0
    while start < len(items):
        size = sizes[i % len(sizes)]
        chunks.append(items[start : start + size])
        start, i = start + size, i + 1
    return chunks


def run(detokenizer: Detokenizer, ids: Sequence[int], sizes: Sequence[int] = (1,)) -> str:
    """Append until a stop string is found; the joined deltas, each of which `text` must agree with."""
    shown = ""
    for chunk in chunked(ids, sizes):
        stopped = detokenizer.append(chunk)
        shown += detokenizer.next_text()
        assert shown == detokenizer.text
        if stopped is not None:
            break
    shown += detokenizer.next_text(finished=True)
    assert shown == detokenizer.text
    assert detokenizer.next_text(finished=True) == ""
    return shown


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of a text, or any ids at all: half characters, special tokens, ids outside the vocabulary."""
    anything = st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=25)
    return st.one_of(TEXT.map(tokenizer.encode), anything, st.sampled_from(CORPUS[:4]).map(tokenizer.encode))


def byte_runs_kept(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool) -> str:
    """What Llama 2's tokens read as: the batch decode, but for the good start of a malformed run of byte tokens."""
    text, run = "", b""
    for token_id in [*ids, None]:
        token = "" if token_id is None else tokenizer.backend.id_to_token(token_id)
        if token is None or (skip_special_tokens and token_id in tokenizer.special_ids):
            continue
        if token and (byte := BYTE_TOKEN.fullmatch(token)):
            run += bytes.fromhex(byte[1])
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError as error:
            text += run[: error.start].decode() + "\ufffd" * (len(run) - error.start)
        text, run = text + token.replace("▁", " "), b""
    return text.removeprefix(" ")


@pytest.mark.parametrize("name", KINDS)
def test_stream_of_each_tokenizer(name: str) -> None:
    assert type(text_stream(TOKENIZERS[name])) is KINDS[name]
    assert type(text_stream(TOKENIZERS["clean-up"])) is CleanText


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=80, deadline=None)
@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), skip=st.booleans())
def test_deltas_join_to_the_batch_decode(name: str, data: st.DataObject, sizes: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(ids_of(tokenizer))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    shown = run(detokenizer, ids, sizes)
    decoded = tokenizer.decode(ids, skip_special_tokens=skip)
    assert detokenizer.num_tokens == len(ids)
    assert shown.count("\ufffd") <= decoded.count("\ufffd")
    if name == "byte_fallback":
        assert shown == byte_runs_kept(tokenizer, ids, skip)
        assert shown == decoded or "\ufffd" in decoded
    else:
        assert shown == decoded


@settings(max_examples=80, deadline=None)
@given(text=TEXT)
def test_a_character_comes_with_its_last_byte(text: str) -> None:
    for tokenizer, spelled in ((BYTE_LEVEL, byte_level_alphabet()), (TOKENIZERS["byte_fallback"], byte_tokens())):
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=[5])
        for char in text:
            for byte in char.encode():
                assert detokenizer.next_text() == ""
                detokenizer.append([spelled[byte]])
            assert detokenizer.next_text() == char
        assert detokenizer.next_text(finished=True) == ""


def byte_level_alphabet() -> list[int]:
    """The id of each of the 256 bytes."""
    table = BYTE_LEVEL.byte_table(skip_special_tokens=True)
    id_of = {table[token_id]: token_id for token_id in range(BYTE_LEVEL.vocab_size)}
    return [id_of[bytes([byte])] for byte in range(256)]


def byte_tokens() -> list[int]:
    vocab = TOKENIZERS["byte_fallback"].get_vocab()
    return [vocab[f"<0x{byte:02X}>"] for byte in range(256)]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback", "metaspace", "word_piece", "word_level"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_output_continues_the_prompt(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = data.draw(st.one_of(st.just([0, 1]), st.sampled_from(CORPUS[:3]).map(tokenizer.encode)))
    ids = data.draw(st.sampled_from(CORPUS[:3]).map(tokenizer.encode))
    before, both = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    assert both.startswith(before)
    assert run(Detokenizer(tokenizer, prompt_token_ids=prompt), ids) == both[len(before) :]


def test_leading_space_of_llama_2() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    vocab = tokenizer.get_vocab()
    ids, prompt = [vocab["▁it"], vocab["▁it"]], [vocab["<s>"], vocab["▁b"]]
    assert run(Detokenizer(tokenizer), ids) == "it it"
    assert run(Detokenizer(tokenizer, prompt_token_ids=prompt), ids) == " it it"
    assert run(Detokenizer(tokenizer, prompt_token_ids=prompt[:1]), ids) == "it it"  # the prompt reads as nothing


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_no_spaces_between_special_tokens(name: str, data: st.DataObject, skip: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40)), max_size=12))
    if name == "byte_fallback":
        ids = [token_id for token_id in ids if token_id < 3]  # the rest are bytes
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip, spaces_between_special_tokens=False)
    expected = tokenizer.decode(ids, skip_special_tokens=skip, spaces_between_special_tokens=False)
    assert run(detokenizer, ids) == expected


class Characters:
    """A text stream whose tokens are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


@settings(max_examples=600, deadline=None)
@given(text=st.text(" '.,ntmsverx", max_size=20))
def test_clean_up_of_a_text_in_pieces(text: str) -> None:
    stream = CleanText(Characters())
    assert "".join(stream.push(ord(char)) for char in text) + stream.finish() == clean_up(text)


# ---- stop strings

STRINGS = ["a", "b", "c", "ab", "ba", "aab", "bca", "cc", "abcabc"]


def letters() -> Tokenizer:
    """Tokens 0-8 spell `STRINGS`; 9 and 10 are the two bytes of "é", 11 is skipped."""
    vocab = {spelled: i for i, spelled in enumerate([*STRINGS, "Ã", "©"])}
    backend = BACKENDS["byte_level"]()
    backend.model = type(backend.model)(vocab=vocab, merges=[])
    fresh = Backend(backend.model)
    fresh.decoder = backend.decoder
    fresh.add_special_tokens(["<skipped>"])
    return make(fresh)


LETTERS = letters()
LETTER_IDS = st.lists(st.integers(0, 11), max_size=16)
STOPS = st.lists(st.text("abcé", min_size=1, max_size=5), min_size=1, max_size=4)


def certain_texts(ids: Sequence[int]) -> list[str]:
    """By number of tokens: the text no further token changes."""
    texts = []
    for count in range(len(ids) + 1):
        decoder = getincrementaldecoder("utf-8")("replace")
        texts.append(decoder.decode(b"".join(LETTERS.byte_table(True)[token_id] for token_id in ids[:count])))
    return texts


def first_stop(text: str, stops: Sequence[str], after: int = 0) -> tuple[int, str] | None:
    """Start and string of the stop that is complete first, beyond the first `after` characters."""
    for end in range(after + 1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return end - len(stop), stop
    return None


def longest_that_may_become_a_stop(text: str, stops: Sequence[str], first: bool) -> int:
    """Length of the longest suffix that some continuation turns into a stop (`first`: the one found first)."""
    for length in range(min(len(text), max(map(len, stops)) - 1), 0, -1):
        start = len(text) - length
        for stop in stops:
            if len(stop) > length and stop.startswith(text[start:]):
                continued = text[:start] + stop
                if not first or first_stop(continued, stops, after=len(text)) == (start, stop):
                    return length
    return 0


@settings(max_examples=400, deadline=None)
@given(ids=LETTER_IDS, stops=STOPS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), include=st.booleans())
def test_text_is_cut_at_the_first_stop_string(
    ids: list[int], stops: list[str], sizes: list[int], include: bool
) -> None:
    decoded, certain = LETTERS.decode(ids), certain_texts(ids)
    detokenizer = Detokenizer(LETTERS, stop=stops, include_stop_str_in_output=include)
    shown = run(detokenizer, ids, sizes)
    found = first_stop(decoded, stops)
    if found is None:
        assert (shown, detokenizer.matched_stop, detokenizer.num_tokens) == (decoded, None, len(ids))
        return
    start, stop = found
    end = start + len(stop)
    assert detokenizer.matched_stop == stop
    assert shown == decoded[: end if include else start]
    assert detokenizer.num_tokens == next(n for n, text in enumerate(certain) if len(text) >= end)


@settings(max_examples=400, deadline=None)
@given(ids=LETTER_IDS, stops=STOPS)
def test_exactly_what_may_become_a_stop_string_is_held_back(ids: list[int], stops: list[str]) -> None:
    detokenizer = Detokenizer(LETTERS, stop=stops)
    for token_id, text in zip(ids, certain_texts(ids)[1:], strict=True):
        if detokenizer.append([token_id]) is not None:
            return
        held = longest_that_may_become_a_stop(text, stops, first=True)
        assert detokenizer.text == text[: len(text) - held]


@settings(max_examples=400, deadline=None)
@given(
    ids=LETTER_IDS, stops=STOPS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3), min_tokens=st.integers(0, 9)
)
def test_min_tokens(ids: list[int], stops: list[str], sizes: list[int], min_tokens: int) -> None:
    decoded, certain = LETTERS.decode(ids), certain_texts(ids)
    found = first_stop(decoded, stops, after=len(certain[min_tokens])) if len(ids) > min_tokens else None
    detokenizer = Detokenizer(LETTERS, stop=stops, min_tokens=min_tokens)
    assert run(detokenizer, ids, sizes) == (decoded if found is None else decoded[: found[0]])
    assert detokenizer.matched_stop == (None if found is None else found[1])

    detokenizer = Detokenizer(LETTERS, stop=stops, min_tokens=min_tokens)
    for token_id, text in zip(ids, certain[1:], strict=True):
        if detokenizer.append([token_id]) is not None:
            break
        held = longest_that_may_become_a_stop(text, stops, first=detokenizer.num_tokens >= min_tokens)
        assert detokenizer.text == text[: len(text) - held]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), include=st.booleans())
def test_stop_strings_with_every_tokenizer(name: str, data: st.DataObject, include: bool) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(TEXT.map(tokenizer.encode))
    decoded = tokenizer.decode(ids)
    part = st.tuples(st.integers(0, 30), st.integers(1, 6)).map(lambda at: decoded[at[0] : at[0] + at[1]] or "x")
    stops = data.draw(st.lists(part, min_size=1, max_size=3))
    found = first_stop(decoded, stops)
    expected = decoded if found is None else decoded[: found[0] + (len(found[1]) if include else 0)]
    assert run(Detokenizer(tokenizer, stop=stops, include_stop_str_in_output=include), ids) == expected


def ids_spelling(*strings: str) -> list[int]:
    return [STRINGS.index(string) for string in strings]


def test_tokens_behind_the_stop_string_are_not_consumed() -> None:
    detokenizer = Detokenizer(LETTERS, stop=["bc", "cc"])
    assert detokenizer.append(ids_spelling("a", "aab", "bca", "cc", "b")) == "bc"
    assert (detokenizer.num_tokens, detokenizer.text) == (3, "aaab")
    assert detokenizer.next_text(finished=True) == "aaab"


def test_stop_string_across_tokens_is_never_shown() -> None:
    detokenizer = Detokenizer(LETTERS, stop=["abcabcc"])
    deltas = []
    for string in ("c", "ab", "c", "ab", "cc"):
        stopped = detokenizer.append(ids_spelling(string))
        deltas.append(detokenizer.next_text())
    assert (stopped, deltas) == ("abcabcc", ["c", "", "", "", ""])


def test_what_is_held_back_comes_out_at_the_end() -> None:
    detokenizer = Detokenizer(LETTERS, stop=["abd"])
    detokenizer.append([*ids_spelling("c", "ab"), 9])
    assert detokenizer.next_text() == "c"
    assert detokenizer.next_text(finished=True) == "ab\ufffd"


def test_newline_of_llama_2_stops_at_once() -> None:
    tokenizer = TOKENIZERS["byte_fallback"]
    detokenizer = Detokenizer(tokenizer, stop=["\n"])
    newline = tokenizer.get_vocab()["<0x0A>"]
    assert detokenizer.append([newline]) == "\n"


def test_matcher_is_linear_in_its_stop_strings() -> None:
    """A user's long stop string must not cost its square in memory or time."""
    matcher = StopMatcher(["ab" * 5000 + "c"])
    state, end = matcher.advance(0, "ab" * 5000 + "ab" + "c")
    assert end == 10003
    assert matcher.stop_at(state) == "ab" * 5000 + "c"


def test_empty_stop_string_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="empty stop string"):
        Detokenizer(LETTERS, stop=["a", ""])


def test_completions_share_the_matcher_of_their_stop_strings() -> None:
    """It takes long to build: a hundred completions with many long strings would hold all others up for a minute."""
    assert stop_matcher(("a", "b")) is stop_matcher(("a", "b")) is not stop_matcher(("b", "a"))
    assert Detokenizer(LETTERS, stop=["a"])._matcher is Detokenizer(LETTERS, stop=("a",))._matcher
