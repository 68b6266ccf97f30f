"""SamplingParams: defaults, bounds, unknown names, travel, and what only a model can check."""

import math
import subprocess
import sys

import msgspec
import pytest

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import SamplingParams, validate_for_model


def test_defaults_are_vllms():
    params = SamplingParams()
    assert (params.n, params.max_tokens, params.min_tokens) == (1, 16, 0)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.0, 0.0, 1.0)
    assert (params.logprobs, params.prompt_logprobs, params.seed) == (None, None, None)
    assert (params.stop, params.stop_token_ids, params.bad_words) == ([], [], [])
    assert params.detokenize
    assert params.skip_special_tokens
    assert params.spaces_between_special_tokens
    assert not params.ignore_eos
    assert not params.include_stop_str_in_output


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("n", 0, "at least 1"),
        ("presence_penalty", 2.1, "in [-2, 2]"),
        ("frequency_penalty", -2.1, "in [-2, 2]"),
        ("repetition_penalty", 0.0, "greater than 0"),
        ("repetition_penalty", math.inf, "finite"),
        ("temperature", -0.1, "in [0, 2]"),
        ("temperature", 2.1, "in [0, 2]"),
        ("temperature", math.nan, "in [0, 2]"),
        ("top_p", 0.0, "in (0, 1]"),
        ("top_p", 1.1, "in (0, 1]"),
        ("top_k", -2, "at least 1, or 0 or -1"),
        ("min_p", 1.5, "in [0, 1]"),
        ("seed", 2**63, "64-bit"),
        ("max_tokens", 0, "at least 1"),
        ("min_tokens", -1, "at least 0"),
        ("min_tokens", 17, "max_tokens, which is 16"),
        ("logprobs", -2, "at least 0, or -1"),
        ("prompt_logprobs", -2, "at least 0, or -1"),
        ("stop", [""], "without empty strings"),
        ("bad_words", ["a", ""], "without empty strings"),
        ("stop_token_ids", [3, -1], "at least 0"),
        ("allowed_token_ids", [], "at least one"),
        ("logit_bias", {3: 100.5}, "in [-100, 100]"),
        ("logit_bias", {-1: 1.0}, "at least 0"),
    ],
)
def test_out_of_bounds_names_field_value_and_bound(field, value, bound):
    with pytest.raises(ParameterError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.parameter == field
    assert bound in str(caught.value)
    shown = {"stop_token_ids": "-1", "logit_bias": "100.5" if 3 in (value if isinstance(value, dict) else ()) else "-1"}
    assert shown.get(field, str(value)) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", True),
        ("n", 1.0),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", None),
        ("top_k", None),
        ("seed", 1.5),
        ("max_tokens", "16"),
        ("logprobs", True),
        ("ignore_eos", 1),
        ("stop", 3),
        ("stop", [3]),
        ("stop_token_ids", 3),
        ("stop_token_ids", ["3"]),
        ("stop_token_ids", [True]),
        ("allowed_token_ids", {1, 2}),
        ("logit_bias", [1]),
        ("logit_bias", {"3": 1.0}),
        ("logit_bias", {3: math.nan}),
        ("bad_words", "word"),
        ("structured_outputs", {"json": {}}),
    ],
)
def test_wrong_types_are_value_errors_that_name_the_field(field, value):
    with pytest.raises(ParameterError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.parameter == field


def test_stop_needs_text():
    with pytest.raises(ValueError, match=r"stop .* detokenize"):
        SamplingParams(stop="x", detokenize=False)


def test_unknown_argument_names_the_nearest():
    with pytest.raises(TypeError, match=r"unknown argument 'temprature', did you mean 'temperature'\?"):
        SamplingParams(temprature=1)
    with pytest.raises(TypeError, match="unknown argument 'zzz'; known are n, presence_penalty"):
        SamplingParams(zzz=1)
    with pytest.raises(TypeError, match="bad_words_token_ids"):
        SamplingParams(bad_words_token_ids=[[1]])


def test_one_form_for_what_can_be_said_in_several():
    assert SamplingParams(stop="x").stop == ["x"]
    assert SamplingParams(stop=("x", "y")).stop == ["x", "y"]
    assert SamplingParams(top_k=-1) == SamplingParams()
    assert SamplingParams(seed=-1) == SamplingParams()
    assert SamplingParams(3).n == 3
    assert isinstance(SamplingParams(temperature=1).temperature, float)


def test_greedy_below_a_hundred_thousandth():
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy


def test_travels_as_message():
    params = SamplingParams(
        n=2, stop=["a"], logit_bias={3: -1.5}, bad_words=["b"], seed=-(2**63), max_tokens=None, allowed_token_ids=[3]
    )
    params.bad_words_token_ids = [[1, 2]]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


def test_a_message_is_checked_too():
    with pytest.raises(msgspec.ValidationError, match="top_p is 7"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"top_p": 7.0}), type=SamplingParams)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_token_ids": [1, 100]}, "stop_token_ids has token id 100, but the vocabulary ends at 99"),
        ({"allowed_token_ids": [100]}, "allowed_token_ids has token id 100"),
        ({"logit_bias": {100: 1.0}}, "logit_bias has token id 100"),
        ({"logprobs": 21}, "logprobs is 21, but must be at most max_logprobs, which is 20"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21"),
        ({"logprobs": -1}, r"logprobs is -1 \(the whole vocabulary of 100\), but must be at most max_logprobs"),
    ],
)
def test_against_the_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        validate_for_model(SamplingParams(**arguments), vocab_size=100, max_logprobs=20)


def test_within_the_model():
    edge = SamplingParams(stop_token_ids=[99], allowed_token_ids=[0], logit_bias={99: 1.0}, logprobs=20)
    validate_for_model(edge, vocab_size=100, max_logprobs=20)
    validate_for_model(SamplingParams(logprobs=-1), vocab_size=100, max_logprobs=100)
    validate_for_model(SamplingParams(logprobs=-1, prompt_logprobs=100), vocab_size=100, max_logprobs=-1)
    with pytest.raises(ValueError, match=r"prompt_logprobs is 101.*vocabulary, which is 100"):
        validate_for_model(SamplingParams(prompt_logprobs=101), vocab_size=100, max_logprobs=-1)


def test_a_field_changed_afterwards_is_checked_again():
    params = SamplingParams()
    params.top_p = 2
    with pytest.raises(ValueError, match="top_p is 2"):
        validate_for_model(params, vocab_size=100, max_logprobs=20)


class WordTokenizer:
    """Splits at the letter x; a leading space belongs to the token. Token ids are made as they are met."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        parts = text.replace("x", "x|").split("|")
        return [self.ids.setdefault(part, len(self.ids)) for part in parts if part]


def test_bad_words_are_resolved_with_and_without_leading_space():
    tokenizer = WordTokenizer()
    params = SamplingParams(bad_words=["bad", " bad", "oxen"])
    params.resolve_bad_words(tokenizer)
    expected = [["bad"], [" bad"], ["ox", "en"], [" ox", "en"]]
    assert params.bad_words_token_ids == [[tokenizer.ids[part] for part in word] for word in expected]
    assert params.bad_words == ["bad", " bad", "oxen"]

    nothing = SamplingParams()
    nothing.resolve_bad_words(tokenizer)
    assert nothing.bad_words_token_ids is None


def test_needs_neither_torch_nor_numpy():
    code = (
        "import sys, lightvllm.sampling_params, lightvllm.outputs, lightvllm.seeds\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
