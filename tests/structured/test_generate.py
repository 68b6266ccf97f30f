"""Structured output from an engine: every text that ends by itself has its form, whatever runs beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from lightvllm import SamplingParams
from lightvllm.config import DEFAULT_MODEL
from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams

if TYPE_CHECKING:
    from lightvllm import LLM
    from lightvllm.outputs import CompletionOutput, RequestOutput
    from tests.e2e.checkpoint import Checkpoint

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
# Random weights know no end, so each of these forms comes to one.
STRUCTURES: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "json": ({"json": SCHEMA}, lambda text: Draft202012Validator(SCHEMA).is_valid(json.loads(text))),
    "regex": ({"regex": "[a-z]{3,8}@(the|in){1,4}"}, re.compile("[a-z]{3,8}@(the|in){1,4}").fullmatch),
    "choice": ({"choice": ["yes", "no", "perhaps", "thé"]}, {"yes", "no", "perhaps", "thé"}.__contains__),
    "grammar": (
        {"grammar": 'start: "SELECT " COL ("," COL){0,3}\nCOL: /[a-z]{1,4}/\n'},
        re.compile("SELECT [a-z]{1,4}(,[a-z]{1,4}){0,3}").fullmatch,
    ),
    "gbnf": ({"grammar": 'root ::= ("a" | "b") [0-9] [0-9]\n'}, re.compile("[ab][0-9][0-9]").fullmatch),
    "json_object": ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
}  # type: ignore[dict-item]
PROMPTS = ["the man", "and in the end", "x"]
END = 258  # the checkpoint's second end-of-sequence token


def asking(structure: dict[str, Any], **params: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**structure), **({"max_tokens": 120} | params))


def requests() -> tuple[list[str], list[SamplingParams], list[str | None]]:
    """Prompts, parameters and kinds: of each kind greedy and random ones, and free ones among them."""
    found: list[tuple[str, SamplingParams, str | None]] = []
    for kind, (structure, _) in STRUCTURES.items():
        for i, (prompt, temperature) in enumerate(zip(PROMPTS, (0.0, 1.0, 2.0), strict=True)):
            found.append((prompt, asking(structure, temperature=temperature, seed=i), kind))
        found.append((PROMPTS[0], SamplingParams(max_tokens=20, temperature=1.0, seed=7), None))
    prompts, params, kinds = zip(*found, strict=True)
    return list(prompts), list(params), list(kinds)


def check(outputs: list[RequestOutput], kinds: list[str | None]) -> None:
    """Each text that ended by itself has its form, and each bounded form ended."""
    for output, kind in zip(outputs, kinds, strict=True):
        completion = output.outputs[0]
        if kind is None:
            continue
        assert completion.finish_reason in ("stop", "length"), completion.stop_reason
        assert completion.stop_reason is None
        if completion.finish_reason == "stop":
            assert STRUCTURES[kind][1](completion.text), (kind, completion.text)
        else:
            assert kind == "json_object", completion.text


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def expected(text_checkpoint: Checkpoint, device: str) -> list[list[int]]:
    """What `requests` give, each alone."""
    from lightvllm import LLM

    with_one = LLM(text_checkpoint.path, device=device, max_num_seqs=1)
    prompts, params, kinds = requests()
    outputs = with_one.generate(prompts, params, use_tqdm=False)
    with_one.close()
    check(outputs, kinds)
    return tokens(outputs)


def test_in_company(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint, expected: list[list[int]]) -> None:
    prompts, params, kinds = requests()
    outputs = make_llm(text_checkpoint.path).generate(prompts, params, use_tqdm=False)
    check(outputs, kinds)
    assert tokens(outputs) == expected


def test_after_preemption(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint, expected: list[list[int]]) -> None:
    """Matchers are made again, and read what was written."""
    prompts, params, _ = requests()
    llm = make_llm(text_checkpoint.path, kv_cache_memory_bytes=text_checkpoint.kv_cache_bytes(14), max_model_len=160)
    assert tokens(llm.generate(prompts, params, use_tqdm=False)) == expected
    assert llm.get_metrics().num_preemptions > 0


def test_behind_a_prefix_hit(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    params = asking({"json": SCHEMA}, temperature=1.0, seed=3)
    prompt = "the man and the end " * 4
    first, second = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert second.num_cached_tokens > 0
    assert second.outputs[0].token_ids == first.outputs[0].token_ids
    check([first, second], ["json", "json"])


def one(llm: LLM, params: SamplingParams) -> CompletionOutput:
    return llm.generate("the man", params, use_tqdm=False)[0].outputs[0]


def test_the_end_comes_even_where_it_is_unwanted(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    for unwanted in ({"ignore_eos": True}, {"min_tokens": 50}, {"ignore_eos": True, "min_tokens": 50}):
        output = one(llm, asking({"choice": ["perhaps"]}, **unwanted))
        assert (output.text, output.finish_reason, output.stop_reason) == ("perhaps", "stop", None)
        # Where something else fits, it is taken.
        output = one(llm, asking({"regex": "a{1,60}"}, temperature=0, **unwanted))
        assert output.finish_reason == "stop"
        assert len(output.text) >= (60 if "ignore_eos" in unwanted else 50)


def test_the_end_comes_only_where_it_fits(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    eager = asking({"regex": "[a-z]{5}[0-9]*"}, logit_bias={END: 100.0}, temperature=0)
    output = one(llm, eager)
    assert re.fullmatch("[a-z]{5}", output.text)
    assert output.token_ids[-1] == END
    # A user's stop token is a text's token, and ends where it comes.
    output = one(llm, asking({"regex": "[a-c]{40}"}, stop_token_ids=[ord("b")], logit_bias={ord("b"): 100.0}))
    assert (output.finish_reason, output.stop_reason) == ("stop", ord("b"))


def test_log_probabilities_are_the_models_own(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    free = one(llm, SamplingParams(max_tokens=1, temperature=0, logprobs=5))
    bound = one(llm, asking({"choice": ["~~"]}, max_tokens=1, temperature=0, logprobs=5))
    assert bound.text == "~"
    assert free.logprobs is not None
    assert bound.logprobs is not None
    assert next(iter(bound.logprobs[0])) == ord("~")
    for token_id, entry in free.logprobs[0].items():
        assert bound.logprobs[0][token_id].logprob == entry.logprob


def test_what_cannot_be_followed_ends_alone(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    params = [
        asking({"regex": "((((a{1,30}){1,30}){1,30}){1,30}){1,30}"}, ignore_eos=True),  # too much to remember
        asking({"choice": ["yes"]}),
        asking({"choice": ["yes"]}, allowed_token_ids=[ord("n")]),
        SamplingParams(max_tokens=5),
    ]
    costly, good, impossible, free = (o.outputs[0] for o in llm.generate(["x"] * 4, params, use_tqdm=False))
    assert costly.finish_reason == "error"
    assert "cannot be followed" in str(costly.stop_reason)
    assert (good.text, good.finish_reason) == ("yes", "stop")
    assert impossible.finish_reason == "error"
    assert "structured_outputs" in str(impossible.stop_reason)
    assert free.finish_reason == "length"


def test_refused_before_anything_runs(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    for structure in ({"json": {"not": {}}}, {"regex": "("}, {"grammar": "start: x"}, {"choice": []}):
        with pytest.raises(ParameterError) as caught:
            llm.generate("x", asking(structure), use_tqdm=False)
        assert caught.value.parameter == "structured_outputs"
    without = make_llm(text_checkpoint.path, skip_tokenizer_init=True)
    with pytest.raises(ParameterError, match="skip_tokenizer_init"):
        without.generate({"prompt_token_ids": [1]}, asking({"regex": "a"}, detokenize=False), use_tqdm=False)


def test_n_outputs(make_llm: Callable[..., LLM], text_checkpoint: Checkpoint) -> None:
    llm = make_llm(text_checkpoint.path)
    (output,) = llm.generate("x", asking({"json": SCHEMA}, n=4, temperature=1.5, seed=1), use_tqdm=False)
    found = [completion.text for completion in output.outputs]
    assert all(STRUCTURES["json"][1](text) for text in found)
    assert len(set(found)) > 1


def test_the_default_model(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(DEFAULT_MODEL)
    kinds = [kind for kind in STRUCTURES for _ in range(2)]
    params = [asking(STRUCTURES[kind][0], temperature=i % 2, seed=i) for i, kind in enumerate(kinds)]
    check(llm.generate(["How many users are there?"] * len(kinds), params, use_tqdm=False), kinds)  # type: ignore[arg-type]
