"""Text to token ids and back, read from the files of a Hugging Face checkpoint folder.

`tokenizers` does the work; transformers, which takes seconds to import, is only asked to convert a checkpoint that has
no tokenizer.json. Both encode the same text to the same ids, and tests/engine/test_tokenizer.py holds them together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

T = TypeVar("T")

# The special tokens that have a name of their own in tokenizer_config.json and in chat templates.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Memo(dict[int, T]):
    """A table filled on first use: a vocabulary has 150,000 entries, of which a process sees a few thousand."""

    def __init__(self, compute: Callable[[int], T]) -> None:
        super().__init__()
        self._compute = compute

    def __missing__(self, token_id: int) -> T:
        value = self[token_id] = self._compute(token_id)
        return value


class Tokenizer:
    """A checkpoint's tokenizer: encode, decode, and render chats.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work.
        special_tokens: named special tokens, e.g. {"eos_token": "</s>"}; chat templates see them under these names.
        chat_templates: Jinja source by template name; "default" is the one taken when none is asked for.
        clean_up_spaces: whether decoding drops the space before punctuation (tokenizer_config.json's
            `clean_up_tokenization_spaces`, which transformers honours for everything but BPE).
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        clean_up_spaces: bool = False,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        self.clean_up_spaces = clean_up_spaces and type(backend.model).__name__ != "BPE"
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        added = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._compile_template = lru_cache(maxsize=16)(_compile_template)
        self._byte_tables = {skip: Memo(self._bytes_computer(skip)) for skip in (False, True)}
        self._piece_tables = {skip: Memo(self._piece_computer(skip)) for skip in (False, True)}
        self._texts = Memo(self._compute_token_text)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Load the tokenizer of a local checkpoint folder.

        Raises:
            ValueError: there is no tokenizer in the folder, or it cannot be read.
        """
        folder = Path(path)
        config = _read_json(folder / "tokenizer_config.json")
        if (folder / "tokenizer.json").is_file():
            backend = _load_backend(folder / "tokenizer.json")
            # As transformers does: a config that lists the added tokens has been written after, and instead of,
            # special_tokens_map.json.
            if "added_tokens_decoder" not in config:
                config |= _read_json(folder / "special_tokens_map.json")
            special_tokens = {name: _content(token) for name, token in _named_tokens(config).items()}
            _add_missing_tokens(backend, config)
            backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        else:
            backend, special_tokens = _convert_with_transformers(folder)
        return cls(
            backend,
            special_tokens=special_tokens,
            chat_templates=_read_chat_templates(folder, config),
            clean_up_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        )

    # ---- vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones included. A model's embedding may be padded to more rows than this."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Every token's text in the vocabulary's own spelling (e.g. "Ġthe", "▁the"), with its id."""
        return self.backend.get_vocab(with_added_tokens=True)

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    # ---- text to ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; `add_special_tokens` adds what tokenizer.json puts around a text, such as a BOS."""
        try:
            return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            raise _not_text(text) from None

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, encoded on all cores."""
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            raise _not_text(texts) from None
        return [encoding.ids for encoding in encodings]

    # ---- ids to text

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of `ids`; an id that is not in the vocabulary has none, malformed UTF-8 becomes U+FFFD.

        `spaces_between_special_tokens=False` writes neighbouring added tokens without the space that some decoders
        (WordPiece, or none at all) put between any two tokens.
        """
        if skip_special_tokens or spaces_between_special_tokens:
            text = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        else:
            text = self.join_tokens(self._merge_added(ids))
        return clean_up(text) if self.clean_up_spaces else text

    def _merge_added(self, ids: Sequence[int]) -> list[str]:
        tokens: list[str] = []
        follows_added = False
        for token_id in ids:
            token = self.backend.id_to_token(token_id)
            if token is None:
                continue
            is_added = token_id in self.added_ids
            if is_added and follows_added and not self.is_byte_level:
                tokens[-1] += token
            else:
                tokens.append(token)
            follows_added = is_added
        return tokens

    def join_tokens(self, tokens: Sequence[str]) -> str:
        """Text of tokens given in the vocabulary's own spelling."""
        decoder = self.backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def token_text(self, token_id: int) -> str:
        """What one token reads as in the middle of a text (" the", not "Ġthe"); part of a character is U+FFFD."""
        return self._texts[token_id]

    def _compute_token_text(self, token_id: int) -> str:
        if self.is_byte_level:
            return self._byte_tables[False][token_id].decode("utf-8", "replace")
        piece = self._piece_tables[False][token_id]
        if isinstance(piece, int):
            return bytes([piece]).decode("utf-8", "replace")
        if self.is_byte_fallback or not piece:
            return piece
        # Behind a copy of itself the token is not the first of the text, where decoders drop the leading space.
        return self.join_tokens([piece, piece])[len(self.join_tokens([piece])) :]

    # ---- what the detokenizer needs to know of the decoder

    @cached_property
    def decoder_steps(self) -> list[dict[str, Any]]:
        """The decoder's steps, as tokenizer.json writes them; empty where there is no decoder."""
        if self.backend.decoder is None:
            return []
        state = json.loads(self.backend.decoder.__getstate__())
        return state["decoders"] if state["type"] == "Sequence" else [state]

    @property
    def is_byte_level(self) -> bool:
        """Every token stands for bytes, whatever its neighbours (GPT-2, Llama 3, Qwen): see `byte_table`."""
        return [step["type"] for step in self.decoder_steps] == ["ByteLevel"]

    @property
    def is_byte_fallback(self) -> bool:
        """The Llama 2 decoder: a fixed text or one byte a token, then a space stripped off the start of the whole."""
        types = [step["type"] for step in self.decoder_steps]
        if types[:3] != ["Replace", "ByteFallback", "Fuse"] or "String" not in self.decoder_steps[0]["pattern"]:
            return False
        return types[3:] == [] or (types[3:] == ["Strip"] and self.decoder_steps[3]["stop"] == 0)

    def byte_table(self, skip_special_tokens: bool) -> Mapping[int, bytes]:
        """Token id to bytes, of a byte-level tokenizer; b"" for what decoding leaves out."""
        return self._byte_tables[skip_special_tokens]

    def piece_table(self, skip_special_tokens: bool) -> Mapping[int, str | int]:
        """Token id to piece, of the other tokenizers: a byte as an int, any other token as a str, "" if left out.

        The str is text if `is_byte_fallback`, else the vocabulary's spelling, for `join_tokens`.
        """
        return self._piece_tables[skip_special_tokens]

    def _bytes_computer(self, skip_special_tokens: bool) -> Callable[[int], bytes]:
        byte_of_char = _byte_level_alphabet()

        def compute(token_id: int) -> bytes:
            token = self.backend.id_to_token(token_id)
            if token is None or (skip_special_tokens and token_id in self.special_ids):
                return b""
            try:
                return bytes([byte_of_char[char] for char in token])
            except KeyError:  # an added token, which is spelled as it reads
                return token.encode()

        return compute

    def _piece_computer(self, skip_special_tokens: bool) -> Callable[[int], str | int]:
        def compute(token_id: int) -> str | int:
            token = self.backend.id_to_token(token_id)
            if token is None or (skip_special_tokens and token_id in self.special_ids):
                return ""
            byte = BYTE_TOKEN.fullmatch(token)
            if byte and any(step["type"] == "ByteFallback" for step in self.decoder_steps):
                return int(byte[1], 16)
            if self.is_byte_fallback:
                replace = self.decoder_steps[0]
                return token.replace(replace["pattern"]["String"], replace["content"])
            return token

        return compute

    # ---- chats

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt text of a chat. It carries its own special tokens: encode it with `add_special_tokens=False`.

        Args:
            messages: {"role": ..., "content": text or list of {"type": "text", "text": ...} parts, ...} each.
            tools, documents: JSON schemas and documents, handed to the template.
            chat_template: Jinja source, or the name of one of the checkpoint's templates; by default its "tool_use"
                template where tools are given and it has one, else its "default".
            add_generation_prompt: end with the header that opens the assistant's turn.
            continue_final_message: leave the final message open, for the model to write on.
            **kwargs: further variables of the template, e.g. `enable_thinking`.

        Raises:
            ValueError: no such template, a malformed message, or the template refuses the chat.
        """
        template = self._compile_template(self._choose_template(chat_template, has_tools=tools is not None))
        return template.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=self.special_tokens | kwargs,
        )

    def _choose_template(self, chosen: str | None, has_tools: bool) -> str:
        if chosen is not None:
            if chosen not in self.chat_templates and "{" not in chosen:
                names = ", ".join(sorted(self.chat_templates)) or "none"
                raise ValueError(
                    f"chat_template: {chosen!r} is no Jinja template, nor a name of the tokenizer's: {names}"
                )
            return self.chat_templates.get(chosen, chosen)
        for name in ("tool_use", "default") if has_tools else ("default",):
            if name in self.chat_templates:
                return self.chat_templates[name]
        if self.chat_templates:
            names = ", ".join(sorted(self.chat_templates))
            raise ValueError(f"chat_template: the tokenizer has no default template; pass one of these names: {names}")
        raise ValueError(
            "chat_template: the tokenizer has none; pass chat_template=... (Jinja source), or use a plain prompt"
        )


def clean_up(text: str) -> str:
    """Drop the space before punctuation and English contractions, as transformers' clean_up_tokenization does."""
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def _byte_level_alphabet() -> dict[str, int]:
    """The byte behind each of GPT-2's 256 characters: itself where it prints, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _compile_template(source: str) -> Any:
    from lightvllm.engine.chat_template import ChatTemplate  # not before it is needed: jinja2 takes 50 ms to import

    return ChatTemplate(source)


def _not_text(value: Any) -> ValueError:
    return ValueError(f"text: expected valid unicode text, got {type(value).__name__} {value!r:.100}")


# ---- reading the files


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _load_backend(path: Path) -> Backend:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"cannot read {path}: {error}") from error


def _read_chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: those in files of their own come before those in tokenizer_config.json."""
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    templates = config.get("chat_template") or {}
    if isinstance(templates, str):
        return {"default": templates}
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}
    return dict(templates)


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str | dict[str, Any]]:
    """Special tokens by name, as a text or with flags: the usual ones, then a model's own ("image_token": ...)."""
    named = {name: config[name] for name in NAMED_TOKENS if config.get(name) is not None}
    named |= {name: value for name, value in config.items() if name.endswith("_token") and isinstance(value, str)}
    more = _more_special_tokens(config)
    return named | (more if isinstance(more, dict) else {})


def _more_special_tokens(config: Mapping[str, Any]) -> Any:
    """Special tokens outside the usual names: a list, or a dict by name."""
    return config.get("extra_special_tokens") or config.get("additional_special_tokens") or []


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _add_missing_tokens(backend: Backend, config: Mapping[str, Any]) -> None:
    """Add the tokens that tokenizer_config.json knows and tokenizer.json does not, or knows with other flags."""
    from tokenizers import AddedToken

    present = backend.get_added_tokens_decoder().values()
    listed = sorted((int(token_id), token) for token_id, token in config.get("added_tokens_decoder", {}).items())
    tokens = [AddedToken(**fields) for _, fields in listed]
    known = {repr(token) for token in present}
    tokens = [token for token in tokens if repr(token) not in known]

    more = _more_special_tokens(config)
    special = [*_named_tokens(config).values(), *(more if isinstance(more, list) else [])]
    spelled = {token.content for token in [*present, *tokens]}
    for token in special:
        if _content(token) not in spelled:
            spelled.add(_content(token))
            flags = {} if isinstance(token, str) else {k: v for k, v in token.items() if k not in ("__type", "special")}
            tokens.append(AddedToken(**{"content": token, **flags}, special=True))
    backend.add_tokens(tokens)


def _convert_with_transformers(folder: Path) -> tuple[Backend, dict[str, str]]:
    """Backend and named special tokens of a checkpoint that only has a slow tokenizer's files."""
    has_slow = (folder / "tokenizer.model").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )
    if not has_slow:
        raise ValueError(f"no tokenizer in {folder}: expected tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(
            f"no tokenizer.json in {folder}; converting its tokenizer needs: pip install 'lightvllm[compat]'"
        ) from None
    try:
        slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        return slow.backend_tokenizer, slow.special_tokens_map
    except Exception as error:  # whatever the conversion of a foreign file may raise
        raise ValueError(f"no tokenizer.json in {folder}, and transformers cannot convert it: {error}") from error
