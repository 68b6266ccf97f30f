"""Log-probabilities in the forms of the two endpoints. Both want numbers: minus infinity becomes -9999, as in vLLM."""

from collections.abc import Sequence

from lightvllm.engine.detokenizer import TextStream
from lightvllm.engine.tokenizer import Tokenizer
from lightvllm.outputs import Logprob
from lightvllm.server.generate.chunks import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)

LEAST = -9999.0

# Of each token: token id -> `Logprob` of it and of the most likely ones. None for a prompt's first token.
Entries = Sequence[dict[int, Logprob] | None]


class TokenNames:
    """What tokens are called in an answer.

    Args:
        as_ids: "token_id:123" instead of the text, which several tokens may share.
    """

    def __init__(self, tokenizer: Tokenizer, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        """What the token adds to the text's UTF-8: not to be told from the text where it is a part of a character."""
        if self._tokenizer.is_byte_level:
            return list(self._tokenizer.byte_table(skip_special_tokens=False)[token_id])
        piece = self._tokenizer.piece_table(skip_special_tokens=False)[token_id]
        return [piece] if isinstance(piece, int) else list(self._tokenizer.token_text(token_id).encode())


class TextOffsets:
    """Where tokens begin in a text that `stream` makes of them."""

    def __init__(self, stream: TextStream, start: int = 0) -> None:
        self._stream = stream
        self._offset = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """The offsets of the next tokens. Those that make one character together begin where it does."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._stream.push(token_id))
        return offsets


def completion_logprobs(
    token_ids: Sequence[int], entries: Entries, offsets: list[int], num_likeliest: int, names: TokenNames
) -> CompletionLogprobs:
    """The form of /v1/completions: the token and the `num_likeliest` (-1: all there are) most likely ones by name.

    Where several tokens have one name it stands for the likeliest of them.
    """
    result = CompletionLogprobs(text_offset=offsets, token_logprobs=[], tokens=[], top_logprobs=[])
    for token_id, entry in zip(token_ids, entries, strict=True):
        result.tokens.append(names.name(token_id))
        if entry is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        result.token_logprobs.append(max(entry[token_id].logprob, LEAST))
        top: dict[str, float] = {}
        for other, found in [(token_id, entry[token_id]), *likeliest(entry, num_likeliest)]:
            name = names.name(other)
            top[name] = max(found.logprob, LEAST, top.get(name, LEAST))
        result.top_logprobs.append(top)
    return result


def chat_logprobs(token_ids: Sequence[int], entries: Entries, num_likeliest: int, names: TokenNames) -> ChatLogprobs:
    """The form of /v1/chat/completions."""
    content = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        assert entry is not None
        top = [
            TopLogprob(names.name(other), max(found.logprob, LEAST), names.bytes(other))
            for other, found in likeliest(entry, num_likeliest)
        ]
        logprob = max(entry[token_id].logprob, LEAST)
        content.append(TokenLogprob(names.name(token_id), logprob, names.bytes(token_id), top))
    return ChatLogprobs(content)


def prompt_logprobs(entries: Entries) -> PromptLogprobs:
    """vLLM's form of a prompt's: JSON makes the token ids strings."""
    return [
        None
        if entry is None
        else {
            token_id: PromptLogprob(max(found.logprob, LEAST), found.rank, found.decoded_token)
            for token_id, found in entry.items()
        }
        for entry in entries
    ]


def likeliest(entry: dict[int, Logprob], count: int) -> list[tuple[int, Logprob]]:
    """The most likely tokens of an entry, which has the chosen one besides; -1 is all."""
    ranked = sorted(entry.items(), key=lambda item: item[1].logprob, reverse=True)
    return ranked if count == -1 else ranked[:count]
