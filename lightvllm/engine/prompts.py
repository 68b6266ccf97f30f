"""What a user may give as a prompt, and the token ids it means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from lightvllm.engine.tokenizer import Tokenizer


class TextPrompt(TypedDict, total=False):
    """A prompt as text. Prompts share cached prefixes only with those of the same `cache_salt`."""

    prompt: str
    cache_salt: str


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids."""

    prompt_token_ids: list[int]
    cache_salt: str


Prompt = str | list[int] | TextPrompt | TokensPrompt


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt the engine can run; `text` is None when it came as token ids."""

    token_ids: list[int]
    text: str | None = None
    cache_salt: str | None = None


def list_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list of prompts.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(prompts, str | dict) or (isinstance(prompts, list) and prompts and isinstance(prompts[0], int)):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise ValueError(f"prompts: expected one or a list of them, found {prompts!r:.80}")
    return list(prompts)  # type: ignore[arg-type]


def _unwrap(prompt: Mapping[str, Any]) -> tuple[str | list[int], str | None]:
    """The prompt in a dictionary, and its cache salt."""
    forms = [name for name in ("prompt", "prompt_token_ids") if name in prompt]
    if len(forms) != 1 or prompt.keys() - {*forms, "cache_salt"}:
        raise ValueError(
            f"prompt: a dictionary needs either 'prompt' or 'prompt_token_ids' and may have 'cache_salt', "
            f"found {sorted(prompt)}"
        )
    salt = prompt.get("cache_salt")
    if salt is not None and not (isinstance(salt, str) and salt and salt.isprintable()):
        raise ValueError(f"cache_salt: {salt!r} is not a non-empty string of printable characters")
    return prompt[forms[0]], salt


def tokenize_prompt(
    prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int, add_special_tokens: bool = True
) -> TokenizedPrompt:
    """Bring a prompt to token ids.

    Raises:
        ValueError: it is empty, of no known form, has an id outside the vocabulary, or is text without a tokenizer.
    """
    salt = None
    if isinstance(prompt, dict):
        prompt, salt = _unwrap(prompt)
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompt: text needs a tokenizer, which skip_tokenizer_init left out; give token ids")
        token_ids, text = tokenizer.encode(prompt, add_special_tokens), prompt
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        token_ids, text = list(prompt), None  # the caller may go on with its own list
    else:
        raise ValueError(f"prompt: expected a string, a list of token ids or a dictionary, found {prompt!r:.80}")
    if not token_ids:
        raise ValueError("prompt: empty; give at least one token")
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise ValueError(f"prompt: token id {wrong} is not in the vocabulary, which has ids 0 to {vocab_size - 1}")
    return TokenizedPrompt(token_ids, text, salt)
