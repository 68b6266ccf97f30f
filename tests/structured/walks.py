"""Walks through a grammar, as of a model without a mind of its own: texts that the mask lets be written, and end."""

import functools
import random

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.structured import check_structured_outputs
from lightvllm.structured.matcher import MaskFiller, Matcher

VOCAB_SIZE = 259  # bytes, two ends, and one that means nothing
ENDS = [256, 257]
# A walk that took every byte as likely would hardly ever leave a string or a number.
_WAYS_OUT = frozenset(b'"}],')
_TELLING = frozenset(b"0123456789:.-eE\\")
MAX_BYTES = 300


class _Bytes:
    eos_token_id = ENDS[0]
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", b"<other end>")
    special_token_ids = ENDS

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@functools.cache
def byte_tokenizer() -> LLTokenizer:
    """Token b is byte b."""
    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=VOCAB_SIZE, eos_token=ENDS[0])


def matcher(params: StructuredOutputsParams, written: bytes = b"") -> Matcher:
    """A matcher that has seen some bytes."""
    return Matcher(byte_tokenizer, params, ENDS, list(written))


def allowed(one: Matcher) -> list[int]:
    """The tokens that may come next, in order."""
    bits = np.unpackbits(MaskFiller(VOCAB_SIZE).masks([one])[0].view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:VOCAB_SIZE]).tolist()


def accepts(params: StructuredOutputsParams, text: str) -> bool:
    """Whether a text may be written, and may end there."""
    one = matcher(params, text.encode())
    return one.error is None and ENDS[0] in allowed(one)


def walk(params: StructuredOutputsParams, rng: random.Random) -> str | None:
    """A text that the grammar lets end, None if this walk does not come to an end."""
    one, written = matcher(params), b""
    while len(written) < MAX_BYTES:
        choices = allowed(one)
        assert one.error is None, (one.error, written)
        assert choices, written
        if choices[-1] in ENDS:
            assert choices[-2:] == ENDS or len(choices) == 2
            if choices == ENDS or rng.random() < 0.5:
                return written.decode()
            choices = choices[:-2]
        for favourites, probability in ((_WAYS_OUT, 0.2 + len(written) / 100), (_TELLING, 0.4)):
            favoured = [token for token in choices if token in favourites]
            if favoured and rng.random() < probability:
                choices = favoured
        written += bytes([rng.choice(choices)])
        one.consume([written[-1]])
    return None


def texts(count: int, **structure: object) -> list[str]:
    """Texts of so many walks, each checked first; the same for the same structure."""
    params = StructuredOutputsParams(**structure)  # type: ignore[arg-type]
    check_structured_outputs(params)
    rng = random.Random(0)
    found = [walk(params, rng) for _ in range(count)]
    return [text for text in found if text is not None]
