"""What a user asks of the sampling: names, defaults and bounds as in vLLM, checked before anything runs.

Imports neither torch nor numpy: the front side builds and checks these, the messages carry them to the workers.
"""

import dataclasses
import difflib
import functools
import json
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from lightvllm.errors import ParameterError

# Below this, dividing by the temperature says nothing that taking the most likely token does not.
GREEDY_TEMPERATURE = 1e-5

# The fields of `StructuredOutputsParams` of which exactly one is given.
STRUCTURES = ("json", "regex", "choice", "grammar", "json_object")

_T = TypeVar("_T")

# field -> (the bound in words, its test). A nan fails every comparison, so none passes.
_FLOAT_BOUNDS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "presence_penalty": ("in [-2, 2]", lambda x: -2 <= x <= 2),
    "frequency_penalty": ("in [-2, 2]", lambda x: -2 <= x <= 2),
    "repetition_penalty": ("greater than 0 and finite", lambda x: 0 < x < math.inf),
    "temperature": ("in [0, 2] (0 is greedy)", lambda x: 0 <= x <= 2),
    "top_p": ("in (0, 1] (1 is off)", lambda x: 0 < x <= 1),
    "min_p": ("in [0, 1] (0 is off)", lambda x: 0 <= x <= 1),
}
_INT_BOUNDS: dict[str, tuple[str, Callable[[int], bool]]] = {
    "n": ("at least 1", lambda x: x >= 1),
    "top_k": ("at least 1, or 0 or -1 to turn it off", lambda x: x >= -1),
    "min_tokens": ("at least 0", lambda x: x >= 0),
}
_OPTIONAL_INT_BOUNDS: dict[str, tuple[str, Callable[[int], bool]]] = {
    "seed": ("None or a 64-bit signed integer", lambda x: True),
    "max_tokens": ("at least 1, or None for no limit", lambda x: x >= 1),
    "logprobs": ("None, at least 0, or -1 for the whole vocabulary", lambda x: x >= -1),
    "prompt_logprobs": ("None, at least 0, or -1 for the whole vocabulary", lambda x: x >= -1),
}
_FLAGS = (
    "ignore_eos",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
)


class Encodes(Protocol):
    """All that `SamplingParams.resolve_bad_words` needs of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def refuse_unknown_arguments(cls: type[_T]) -> type[_T]:
    """Make a dataclass answer an unknown keyword argument with the nearest known name (a class decorator)."""
    generated_init = cls.__init__
    known = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]

    @functools.wraps(generated_init)
    def __init__(self: _T, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f", did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
                raise TypeError(f"{cls.__name__}: unknown argument {name!r}{hint}")
        generated_init(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign, assignment]
    return cls


@refuse_unknown_arguments
@dataclasses.dataclass(slots=True, frozen=True)
class StructuredOutputsParams:
    """What form the text of an output must have. Exactly one of the first five is given. Does not change once made.

    What is checked here is only that the fields are of their types; whether a schema, a regular expression or a grammar
    can be enforced is what `lightvllm.structured.check_structured_outputs` says.

    Raises:
        ParameterError: of the parameter `structured_outputs`; the message names the field.

    Attributes:
        json: a JSON schema, as a dictionary or as its text; kept as text. The output is a JSON value that fits it.
        regex: a regular expression that the whole output matches, in the syntax of Rust's regex crate, without
            look-around; \\d and \\w mean all of Unicode's digits and letters.
        choice: strings, one of which the output is.
        grammar: a context-free grammar, in Lark's notation or in GBNF, that the whole output follows.
        json_object: True for any JSON object. False is as None.
        disable_any_whitespace: for json and json_object: no white space outside of strings. False allows it wherever
            JSON does, of any length.
        whitespace_pattern: for json and json_object: a regular expression of the white space that may stand between
            JSON's tokens, instead of what `disable_any_whitespace` says.
        disable_additional_properties: for json: a schema with properties that does not mention additionalProperties
            or patternProperties allows no others.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = True
    whitespace_pattern: str | None = None
    disable_additional_properties: bool = False

    def __post_init__(self) -> None:
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise _bad_structure(f"{name} is {getattr(self, name)!r}, but must be True or False")
        if self.json_object is not None and not isinstance(self.json_object, bool):
            raise _bad_structure(f"json_object is {self.json_object!r}, but must be True, False or None")
        object.__setattr__(self, "json_object", self.json_object or None)
        for name in ("regex", "grammar", "whitespace_pattern"):
            text = getattr(self, name)
            if text is not None and not isinstance(text, str):
                raise _bad_structure(f"{name} is {type(text).__name__}, but must be a string")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json))
        if self.choice is not None:
            if not isinstance(self.choice, list | tuple) or not all(isinstance(text, str) for text in self.choice):
                raise _bad_structure("choice must be a list of strings")
            object.__setattr__(self, "choice", list(self.choice))
        for text in (self.json, self.regex, self.grammar, self.whitespace_pattern, *(self.choice or ())):
            if isinstance(text, str) and not _is_unicode(text):
                raise _bad_structure("there is half of a surrogate pair in it, which is no character")
        given = [name for name in STRUCTURES if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise _bad_structure(f"give exactly one of {', '.join(STRUCTURES)}, not {found}")
        if self.whitespace_pattern is not None and self.json is None and self.json_object is None:
            raise _bad_structure("whitespace_pattern only means something with json or json_object")
        if self.disable_additional_properties and self.json is None:
            raise _bad_structure("disable_additional_properties only means something with json")

    @property
    def kind(self) -> str:
        """Which of `STRUCTURES` is given."""
        return next(name for name in STRUCTURES if getattr(self, name) is not None)


@refuse_unknown_arguments
@dataclasses.dataclass(slots=True)
class SamplingParams:
    """How to pick the tokens of one request, and when to stop.

    A field out of its bounds, or of the wrong type, is a `ParameterError` (a `ValueError`); an unknown argument is a
    `TypeError`. A field may be changed afterwards: `validate_for_model`, which every request passes, looks at all of
    them again.

    Attributes:
        n: how many completions to make of the prompt. When greedy they are all equal.
        presence_penalty: subtracted from the logit of each token that the output has already.
        frequency_penalty: the same, times how often the output has it.
        repetition_penalty: divides the positive and multiplies the negative logits of the tokens that prompt or output
            have; above 1 discourages them. Keskar et al., 2019 (CTRL).
        temperature: divides the logits. Below 1e-5 the most likely token is taken (greedy), and top_p, top_k, min_p and
            seed no longer matter.
        top_p: keep the smallest set of most likely tokens whose probabilities reach this sum. Holtzman et al., 2019.
        top_k: keep this many most likely tokens; 0 (or -1) keeps all.
        min_p: drop tokens less likely than this fraction of the most likely one. Nguyen et al., 2024.
        seed: the same seed, prompt and parameters draw the same tokens, whatever runs beside. None (or -1) takes one
            from the engine's.
        stop: a string, or several, that end the output where they first appear in its text.
        stop_token_ids: tokens that end the output, besides the model's own end-of-sequence tokens.
        ignore_eos: go on after an end-of-sequence token.
        max_tokens: the most tokens to generate; None leaves it to the context length.
        min_tokens: forbid ending by a token before this many are generated.
        logprobs: for each generated token, report its log-probability and those of this many most likely tokens, under
            the model's own distribution, before any of the fields here change it. -1 is the whole vocabulary.
        prompt_logprobs: the same for each token of the prompt but the first.
        detokenize: turn the tokens into text. Without it there is no text, so `stop` cannot be used.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens that follow each other in the text.
        include_stop_str_in_output: keep the stop string that ended the output at the end of its text.
        logit_bias: token id -> number in [-100, 100] added to its logit.
        allowed_token_ids: forbid every other token.
        bad_words: strings the output must not come to contain as tokens, alone or after a space.
        structured_outputs: the form the output's text must have. Tokens that do not fit are never sampled, and the
            output ends when it is complete and the model ends it or nothing can follow, whatever ignore_eos and
            min_tokens say; the length may cut it short before.
        bad_words_token_ids: derived, not an argument: `bad_words` as token sequences, set by `resolve_bad_words`.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    bad_words_token_ids: list[list[int]] | None = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.validate()

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken instead of a random one."""
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def samples_blindly(self) -> bool:
        """Whether each token is chosen from the model's own distribution, and nothing but the token is asked for.

        Then it can be chosen where the model runs, and the next step can be prepared before anyone has read it.
        """
        return (
            self.structured_outputs is None
            and self.logprobs is None
            and self.prompt_logprobs is None
            and not (self.min_tokens or self.logit_bias or self.bad_words or self.allowed_token_ids is not None)
            and self.repetition_penalty == 1
            and not (self.frequency_penalty or self.presence_penalty)
        )

    def validate(self) -> None:
        """Check every field, and bring `stop`, the lists and -1 to the one form the engine works with.

        Raises:
            ParameterError: naming field, value and bound.
        """
        for name, (bound, holds) in _FLOAT_BOUNDS.items():
            setattr(self, name, _checked_float(name, getattr(self, name), bound, holds))
        for name, (bound, within) in _INT_BOUNDS.items():
            _check_int(name, getattr(self, name), bound, within)
        for name, (bound, within) in _OPTIONAL_INT_BOUNDS.items():
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), bound, within)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _out_of_bound(name, getattr(self, name), "True or False")
        self.top_k = max(self.top_k, 0)
        if self.seed == -1:
            self.seed = None
        self._validate_lists()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _out_of_bound("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise _out_of_bound("stop", self.stop, "empty when detokenize is False: without text nothing can be found")
        if not isinstance(self.structured_outputs, StructuredOutputsParams | None):
            raise _out_of_bound("structured_outputs", repr(self.structured_outputs), "a StructuredOutputsParams")

    def _validate_lists(self) -> None:
        self.stop = _checked_strings("stop", [self.stop] if isinstance(self.stop, str) else self.stop)
        self.bad_words = _checked_strings("bad_words", self.bad_words)
        self.stop_token_ids = _checked_token_ids(
            "stop_token_ids", [] if self.stop_token_ids is None else self.stop_token_ids
        )
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _checked_token_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise _out_of_bound("allowed_token_ids", [], "None or a list of at least one token id")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise _out_of_bound("logit_bias", self.logit_bias, "a dictionary from token id to number")
            _checked_token_ids("logit_bias", list(self.logit_bias))
            self.logit_bias = {
                token_id: _checked_float(
                    "logit_bias", bias, "in [-100, 100]", lambda x: -100 <= x <= 100, f"logit_bias[{token_id}]"
                )
                for token_id, bias in self.logit_bias.items()
            }

    def resolve_bad_words(self, tokenizer: Encodes) -> None:
        """Set `bad_words_token_ids`: each bad word as it is tokenized at the start of a text and after a space."""
        sequences: list[list[int]] = []
        for word in self.bad_words or []:
            bare = word.lstrip(" ") or word
            for text in (bare, " " + bare):
                token_ids = list(tokenizer.encode(text, add_special_tokens=False))
                if token_ids and token_ids not in sequences:
                    sequences.append(token_ids)
        self.bad_words_token_ids = sequences or None


def validate_for_model(params: SamplingParams, vocab_size: int, max_logprobs: int) -> None:
    """Check what only a model can tell: token ids against its vocabulary, logprobs against the engine's limit.

    Args:
        params: checked again as a whole, as its fields may have changed since it was made.
        vocab_size: number of logits the model gives.
        max_logprobs: the most log-probabilities a request may ask for at each token; -1 is no limit.

    Raises:
        ParameterError: naming field, value and bound.
    """
    params.validate()
    token_ids_of = {
        "stop_token_ids": params.stop_token_ids or [],
        "allowed_token_ids": params.allowed_token_ids or [],
        "logit_bias": list(params.logit_bias or {}),
        "bad_words": [token_id for sequence in params.bad_words_token_ids or [] for token_id in sequence],
    }
    for name, token_ids in token_ids_of.items():
        for token_id in token_ids:
            if token_id >= vocab_size:
                raise ParameterError(
                    name, f"{name} has token id {token_id}, but the vocabulary ends at {vocab_size - 1}"
                )
    for name in ("logprobs", "prompt_logprobs"):
        asked = getattr(params, name)
        if asked is None:
            continue
        if asked > vocab_size:
            raise _out_of_bound(name, asked, f"at most the size of the vocabulary, which is {vocab_size}")
        if max_logprobs == -1:
            continue
        wanted = vocab_size if asked == -1 else asked
        if wanted > max_logprobs:
            whole = f" (the whole vocabulary of {vocab_size})" if asked == -1 else ""
            raise _out_of_bound(name, f"{asked}{whole}", f"at most max_logprobs, which is {max_logprobs}")


def _out_of_bound(name: str, value: Any, bound: str, place: str | None = None) -> ParameterError:
    """`place` says where in the parameter the value is, if it is not all of it."""
    return ParameterError(name, f"{place or name} is {value}, but must be {bound}")


def _bad_structure(message: str) -> ParameterError:
    return ParameterError("structured_outputs", f"structured_outputs: {message}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _schema_text(schema: Any) -> str:
    """A schema as JSON text: numbers of any size travel in it, and it compares at once however deep it is."""
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, dict):
        raise _bad_structure(f"json is {type(schema).__name__}, but must be a JSON schema: a dictionary or its text")
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _bad_structure(f"json is not a JSON schema: {error}") from None
    except RecursionError:
        raise _bad_structure("json is nested too deep") from None


def _checked_float(
    name: str, value: Any, bound: str, holds: Callable[[float], bool], place: str | None = None
) -> float:
    # bool is an int to Python, but temperature=True is a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _out_of_bound(name, repr(value), f"a number {bound}", place)
    if not holds(value):
        raise _out_of_bound(name, value, bound, place)
    return float(value)


def _check_int(name: str, value: Any, bound: str, holds: Callable[[int], bool], place: str | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _out_of_bound(name, repr(value), f"an integer: {bound}", place)
    if not holds(value) or not -(2**63) <= value < 2**63:
        raise _out_of_bound(name, value, bound, place)


def _checked_token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list | tuple):
        raise _out_of_bound(name, repr(value), "a list of token ids")
    for token_id in value:
        _check_int(name, token_id, "at least 0", lambda x: x >= 0, f"a token id of {name}")
    return list(value)


def _checked_strings(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise _out_of_bound(name, repr(value), "a list of strings")
    if "" in value:
        raise _out_of_bound(name, repr(value), "without empty strings")
    return list(value)
