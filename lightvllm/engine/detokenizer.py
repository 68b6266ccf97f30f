"""Token ids to text while they are being generated: half characters and possible stop strings are held back.

Two stages. A text stream (`ByteLevelText`, `PieceText` or `WindowText`, after the tokenizer's decoder) turns token ids
into text that later tokens cannot change. A `StopMatcher` knows how much of that text may still become a stop string.
The `Detokenizer` of a request puts the two together and hands out what is certain. With 256 running requests it is
called 256 times a step, so a token costs about a microsecond and never more for a longer text.
"""

from __future__ import annotations

import functools
from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from typing import Protocol

from lightvllm.engine.tokenizer import Tokenizer, clean_up

REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one request's output, as it grows.

    Args:
        tokenizer: the checkpoint's.
        stop: strings that end the output; none of them empty. The first one to be complete wins; of two that are
            complete with the same character, the first in this list.
        include_stop_str_in_output: keep the stop string in the text.
        skip_special_tokens, spaces_between_special_tokens: as in `Tokenizer.decode`.
        min_tokens: a stop string does not count unless a token after the first `min_tokens` completes it.
        prompt_token_ids: what comes before the output. Some decoders drop the space in front of a text's first word:
            with a prompt the output's first word is not the first. Without one the output reads as
            `tokenizer.decode(output_ids)` does.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        min_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        self._stream = text_stream(tokenizer, skip_special_tokens, spaces_between_special_tokens, prompt_token_ids)
        self._matcher = stop_matcher(tuple(stop)) if stop else None
        self._include_stop = include_stop_str_in_output
        self._min_tokens = min_tokens
        self._state = 0  # the matcher's, after all text so far
        self._held = ""  # text that may still become a stop string
        self._parts: list[str] = []  # text that may be shown, in the order it came
        self._num_parts_handed_out = 0
        self.num_tokens = 0
        """Output tokens consumed: tokens appended behind the one that completed a stop string are not."""
        self.matched_stop: str | None = None

    def append(self, token_ids: Sequence[int]) -> str | None:
        """Add output tokens and return the stop string they complete, if any.

        Tokens after the one that completes it are dropped; `num_tokens` tells how many were taken. A token that ends
        the output by its id (EOS, `stop_token_ids`) is appended only if its text belongs to the output.
        """
        assert self.matched_stop is None, "the output has ended"
        for token_id in token_ids:
            self.num_tokens += 1
            text = self._stream.push(token_id)
            if self._matcher is None:
                self._parts.append(text)
            elif self._match(text, self._matcher):
                return self.matched_stop
        return None

    @property
    def text(self) -> str:
        """All of the output's text that may be shown by now."""
        return "".join(self._parts)

    def finish(self) -> None:
        """No token will follow: what was held back may be shown now, half a character as U+FFFD."""
        if self.matched_stop is not None:
            return
        tail = self._stream.finish()
        if self._matcher is None:
            self._parts.append(tail)
        elif not self._match(tail, self._matcher):
            self._parts.append(self._held)
            self._held, self._state = "", 0

    def next_text(self, finished: bool = False) -> str:
        """The text that may be shown and that no earlier call has returned; `finished` calls `finish` first."""
        if finished:
            self.finish()
        new = "".join(self._parts[self._num_parts_handed_out :])
        self._num_parts_handed_out = len(self._parts)
        return new

    def _match(self, text: str, matcher: StopMatcher) -> bool:
        """Take in new text; True if it completes a stop string, which then is `matched_stop`."""
        self._state, end = matcher.advance(self._state, text, counts=self.num_tokens > self._min_tokens)
        if end:
            self.matched_stop = stop = matcher.stop_at(self._state)
            text = self._held + text[:end]
            self._parts.append(text if self._include_stop else text[: len(text) - len(stop)])
            self._held = ""
            return True
        if self._include_stop:  # it will be shown anyway
            self._parts.append(text)
            return False
        # While stop strings do not count, one that holds another may still be completed behind it.
        hold = matcher.may_be_found if self.num_tokens >= self._min_tokens else matcher.may_be_completed
        text = self._held + text
        shown = len(text) - hold[self._state]
        self._held = text[shown:]
        self._parts.append(text[:shown])
        return False


class StopMatcher:
    """Finds the first of several strings in a text that comes in pieces, in time linear in the text.

    An Aho-Corasick automaton (Aho and Corasick, 1975). Its state after some text is the node of the stop strings' trie
    that spells the longest suffix of the text with which one of them begins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string"
        self._stops = list(stops)
        self._children: list[dict[str, int]] = [{}]
        self._fallback = [0]  # the node of the longest proper suffix
        depth = [0]
        spelled: list[int | None] = [None]  # the stop string (its index) that the node spells
        for index, stop in enumerate(stops):
            node = 0
            for char in stop:
                if char not in self._children[node]:
                    self._children[node][char] = len(depth)
                    self._children.append({})
                    self._fallback.append(0)
                    depth.append(depth[node] + 1)
                    spelled.append(None)
                node = self._children[node][char]
            if spelled[node] is None:
                spelled[node] = index

        self._first_chars = set(self._children[0])
        self._found = list(spelled)  # the stop string with which the node's text ends; of several the first listed
        order = [0]
        for node in order:  # breadth first: a node's fallback, being shorter, is complete before it
            for char, child in self._children[node].items():
                order.append(child)
                self._fallback[child] = self._step(self._fallback[node], char) if node else 0
                inherited = self._found[self._fallback[child]]
                if inherited is not None:
                    own = self._found[child]
                    self._found[child] = inherited if own is None else min(own, inherited)
        self._measure_holds(order, depth, spelled)

    def _measure_holds(self, order: list[int], depth: list[int], spelled: list[int | None]) -> None:
        """Length of the longest suffix, by state, that must not be shown yet."""
        # Not every beginning of a stop string can become the string found: another one may end inside the rest of it.
        leads = [False] * len(order)
        for node in reversed(order):
            for child in self._children[node].values():
                found = self._found[child]
                leads[node] |= leads[child] if found is None else found == spelled[child]
        self.may_be_found = [0] * len(order)
        """What may still become the stop string that is found first."""
        self.may_be_completed = [0] * len(order)
        """What may still become any stop string, found first or not."""
        for node in order[1:]:
            shorter = self._fallback[node]
            self.may_be_found[node] = depth[node] if leads[node] else self.may_be_found[shorter]
            self.may_be_completed[node] = depth[node] if self._children[node] else self.may_be_completed[shorter]

    def _step(self, state: int, char: str) -> int:
        while (child := self._children[state].get(char)) is None and state:
            state = self._fallback[state]
        return child or 0

    def advance(self, state: int, text: str, counts: bool = True) -> tuple[int, int]:
        """Read `text`; return the new state and 0, or where a stop string is complete, the state and end there.

        With `counts=False` stop strings are passed over.
        """
        if not state and self._first_chars.isdisjoint(text):
            return 0, 0
        for end, char in enumerate(text, start=1):
            state = self._step(state, char)
            if counts and self._found[state] is not None:
                return state, end
        return state, 0

    def stop_at(self, state: int) -> str:
        """The stop string that is complete in `state`."""
        index = self._found[state]
        assert index is not None
        return self._stops[index]


# ---- text streams


@functools.lru_cache(maxsize=16)
def stop_matcher(stops: tuple[str, ...]) -> StopMatcher:
    """The matcher of these strings, built once for all the completions of a request and those that follow it."""
    return StopMatcher(stops)


class TextStream(Protocol):
    """Turns token ids into text, one at a time; the text returned is never changed by what follows."""

    def push(self, token_id: int) -> str:
        """The text that is certain with this token and was not before."""

    def finish(self) -> str:
        """The rest of the text, now that no token follows."""


def text_stream(
    tokenizer: Tokenizer,
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
    prompt_token_ids: Sequence[int] = (),
) -> TextStream:
    """The fastest stream that is right for the tokenizer's decoder."""
    stream: TextStream
    if tokenizer.is_byte_level:
        stream = ByteLevelText(tokenizer.byte_table(skip_special_tokens))
    else:
        pieces = tokenizer.piece_table(skip_special_tokens)
        if tokenizer.is_byte_fallback:
            stream = PieceText(pieces, tokenizer, prompt_token_ids)
        else:
            merge_added = not skip_special_tokens and not spaces_between_special_tokens
            stream = WindowText(pieces, tokenizer, prompt_token_ids, merge_added)
    return CleanText(stream) if tokenizer.clean_up_spaces else stream


class ByteLevelText:
    """Every token is a string of bytes: a table and an incremental UTF-8 decoder, about a microsecond a token."""

    def __init__(self, table: Mapping[int, bytes]) -> None:
        self._table = table
        self._tail = b""  # the start of a character

    def push(self, token_id: int) -> str:
        data = self._tail + self._table[token_id]
        text, num_read = utf_8_decode(data, "replace", False)
        self._tail = data[num_read:]
        return text

    def finish(self) -> str:
        text, _ = utf_8_decode(self._tail, "replace", True)
        self._tail = b""
        return text


class _ByteRuns:
    """What `PieceText` and `WindowText` share: characters the vocabulary lacks come as a run of byte tokens.

    A run is shown character by character, as long as it is UTF-8. From a malformed character to the end of the run each
    byte is U+FFFD. (The batch decoder replaces the whole of such a run, its good characters included; waiting for that
    would hold back every newline of Llama 2, which is a byte token, until the next word.)
    """

    def __init__(self, table: Mapping[int, str | int]) -> None:
        self._table = table
        self._run = b""  # the start of a character
        self._malformed = False  # the run, from here to its end

    def push(self, token_id: int) -> str:
        piece = self._table[token_id]
        if isinstance(piece, int):
            return self._push_byte(piece)
        if not piece:  # the decoder never sees it: a run of bytes goes on behind it
            return ""
        if self._run or self._malformed:
            return self.finish() + self._show(piece)
        return self._show(piece)

    def finish(self) -> str:
        tail = REPLACEMENT * len(self._run)
        self._run, self._malformed = b"", False
        return self._show(tail) if tail else ""

    def _push_byte(self, byte: int) -> str:
        self._run += bytes([byte])
        try:
            text, num_read = utf_8_decode(self._run, "strict", False) if not self._malformed else (REPLACEMENT, 1)
        except UnicodeDecodeError:
            self._malformed = True
            text, num_read = REPLACEMENT * len(self._run), len(self._run)
        self._run = self._run[num_read:]
        return self._show(text) if text else ""

    def _show(self, piece: str) -> str:
        """The text that `piece`, which is not empty, adds."""
        raise NotImplementedError


class PieceText(_ByteRuns):
    """Every token is a fixed text or one byte, and the start of the whole may be stripped (Llama 2, Gemma)."""

    def __init__(self, table: Mapping[int, str | int], tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        super().__init__(table)
        strip = tokenizer.decoder_steps[-1]
        has_prompt = any(table[token_id] != "" for token_id in reversed(prompt_token_ids))
        self._num_to_strip = strip["start"] if strip["type"] == "Strip" and not has_prompt else 0
        self._strip_char = strip.get("content")

    def _show(self, piece: str) -> str:
        if not self._num_to_strip:
            return piece
        stripped = piece[min(self._num_to_strip, len(piece) - len(piece.lstrip(self._strip_char))) :]
        self._num_to_strip = 0 if stripped else self._num_to_strip - len(piece)
        return stripped


class WindowText(_ByteRuns):
    """Any other decoder (Metaspace, WordPiece, none): decode the last few tokens, and the same with the new one.

    Right for decoders that look back no further than `CONTEXT` tokens and let a token only add to the text before it.
    """

    CONTEXT = 4

    def __init__(
        self,
        table: Mapping[int, str | int],
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        merge_added: bool,
    ) -> None:
        super().__init__(table)
        self._join_tokens = tokenizer.join_tokens
        self._added_ids = tokenizer.added_ids if merge_added else frozenset()
        self._is_added = self._follows_added = False
        self._tokens = _last_pieces(table, prompt_token_ids, self.CONTEXT)
        self._shown = self._join_tokens(self._tokens)

    def push(self, token_id: int) -> str:
        self._follows_added, self._is_added = self._is_added, token_id in self._added_ids
        return super().push(token_id)

    def _show(self, piece: str) -> str:
        if self._is_added and self._follows_added:
            self._tokens[-1] += piece
        else:
            self._tokens.append(piece)
        text = self._join_tokens(self._tokens)
        new = text[len(self._shown) :]
        if len(self._tokens) > 2 * self.CONTEXT:
            del self._tokens[: -self.CONTEXT]
            text = self._join_tokens(self._tokens)
        self._shown = text
        return new


def _last_pieces(table: Mapping[int, str | int], token_ids: Sequence[int], count: int) -> list[str]:
    pieces: list[str] = []
    for token_id in reversed(token_ids):
        piece = table[token_id]
        if isinstance(piece, str) and piece:
            pieces.insert(0, piece)
            if len(pieces) == count:
                break
    return pieces


class CleanText:
    """Another stream's text without the spaces that `clean_up` drops."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._raw = ""

    def push(self, token_id: int) -> str:
        self._raw += self._stream.push(token_id)
        # clean_up looks for a space and the characters of an ending; none reaches across any other character.
        certain = len(self._raw.rstrip(" 'nvr"))
        text, self._raw = self._raw[:certain], self._raw[certain:]
        return clean_up(text)

    def finish(self) -> str:
        text, self._raw = self._raw + self._stream.finish(), ""
        return clean_up(text)
