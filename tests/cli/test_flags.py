"""Flags and dataclasses are the same thing said twice; wrong ones get one line with the nearest name."""

import argparse
import dataclasses

import pytest

from lightvllm.cli.flags import add_engine_flags, add_sampling_flags, attribute_docs, given
from lightvllm.cli.main import build_parser, main
from lightvllm.cli.parser import Parser
from lightvllm.config import EngineConfig
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="test")
    add_engine_flags(parser)
    add_sampling_flags(parser)
    return parser


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def test_every_field_is_a_flag_and_every_flag_a_field(parser: Parser) -> None:
    fields = {f"EngineConfig.{field.name}" for field in dataclasses.fields(EngineConfig)}
    fields |= {f"SamplingParams.{field.name}" for field in dataclasses.fields(SamplingParams) if field.init}
    fields.remove("SamplingParams.seed")
    actions = _actions(parser)
    assert set(actions) == fields
    for dest, action in actions.items():
        assert "--" + dest.partition(".")[2].replace("_", "-") in action.option_strings


def test_help_is_the_dataclass_s(parser: Parser) -> None:
    actions = _actions(parser)
    for field in dataclasses.fields(EngineConfig):
        assert str(actions[f"EngineConfig.{field.name}"].help).startswith(field.metadata["help"].replace("%", "%%"))
    docs = attribute_docs(SamplingParams)
    assert docs["max_tokens"] == "the most tokens to generate; None leaves it to the context length."
    assert docs["min_p"] == "drop tokens less likely than this fraction of the most likely one. Nguyen et al., 2024."
    for field in dataclasses.fields(SamplingParams):
        if field.init and field.name != "seed":
            assert str(actions[f"SamplingParams.{field.name}"].help).startswith(docs[field.name].removesuffix("."))


def test_only_what_was_given_is_passed_on(parser: Parser) -> None:
    args = parser.parse_args(["--dtype", "float32"])
    assert given(args, EngineConfig) == {"dtype": "float32"}
    assert given(args, SamplingParams) == {}


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        (["--model", "m"], EngineConfig, {"model": "m"}),
        (["--seed", "3"], EngineConfig, {"seed": 3}),
        (["--max-model-len", "64"], EngineConfig, {"max_model_len": 64}),
        (["--gpu-memory-utilization", "0.5"], EngineConfig, {"gpu_memory_utilization": 0.5}),
        (["--kv-cache-dtype", "int8"], EngineConfig, {"kv_cache_dtype": "int8"}),
        (["--no-enable-prefix-caching"], EngineConfig, {"enable_prefix_caching": False}),
        (["--enable-prefix-caching"], EngineConfig, {"enable_prefix_caching": True}),
        (["--scheduling-policy", "priority"], EngineConfig, {"scheduling_policy": "priority"}),
        (["--hf-overrides", '{"a": 1}'], EngineConfig, {"hf_overrides": {"a": 1}}),
        (["--temperature=0"], SamplingParams, {"temperature": 0.0}),
        (["--max-tokens", "none"], SamplingParams, {"max_tokens": None}),
        (["--max-tokens", "5"], SamplingParams, {"max_tokens": 5}),
        (["--top-k", "-1"], SamplingParams, {"top_k": -1}),
        (["--stop", "a", "--stop", "b, c"], SamplingParams, {"stop": ["a", "b, c"]}),
        (["--stop-token-ids", "1,2"], SamplingParams, {"stop_token_ids": [1, 2]}),
        (["--logit-bias", '{"7": -1.5}'], SamplingParams, {"logit_bias": {7: -1.5}}),
        (["--ignore-eos"], SamplingParams, {"ignore_eos": True}),
        (
            ["--structured-outputs", '{"choice": ["a", "b"]}'],
            SamplingParams,
            {"structured_outputs": StructuredOutputsParams(choice=["a", "b"])},
        ),
    ],
)
def test_values_arrive_in_the_field_s_type(
    parser: Parser, words: list[str], options: type, expected: dict[str, object]
) -> None:
    found = given(parser.parse_args(words), options)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_given_flags_reach_the_verb() -> None:
    args = build_parser().parse_args(["generate", "--max-tokens", "3", "a prompt", "another"])
    assert args.prompts == ["a prompt", "another"]
    assert given(args, SamplingParams) == {"max_tokens": 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generat"], "'generat' is unknown, did you mean generate? (see lightvllm --help)"),
        (["xyz"], "'xyz' is unknown, expected one of serve, generate, chat, sql, demo, learn, bench, quantize"),
        (["generate", "--temprature", "0"], "unknown flag --temprature, did you mean --temperature?"),
        (["generate", "--temp", "0"], "unknown flag --temp"),
        (["generate", "--zzzz"], "unknown flag --zzzz (see lightvllm generate --help)"),
        (["generate", "-z"], "unexpected argument '-z'"),
        (["sql", "--bd", "x.sqlite", "how many?"], "unknown flag --bd, did you mean --db?"),
        (["bench", "latencies"], "'latencies' is unknown, did you mean latency?"),
        (["bench", "latency", "--input-length", "3"], "unknown flag --input-length, did you mean --input-len?"),
        (["env", "more"], "unexpected argument 'more'"),
        (["generate", "--scheduling-policy", "fifo"], "'fifo' is unknown, expected one of fcfs, priority"),
        (["generate", "--max-tokens", "many"], "argument --max-tokens: invalid int value: 'many'"),
        (["generate", "--stop-token-ids", "1,x"], "'1,x' is not a list of integers such as 1,2,3"),
        (["generate", "--logit-bias", '{"x": 1}'], "is not a JSON object with int keys"),
        (["generate", "--structured-outputs", "[1]"], "'[1]' is not a JSON object with str keys"),
        (["generate", "--structured-outputs", '{"jsn": {}}'], "unknown argument 'jsn', did you mean 'json'?"),
        (["generate", "--structured-outputs", "{}"], "give exactly one of json, regex, choice, grammar, json_object"),
        (["generate", "--hf-overrides", "[1]"], "'[1]' is not a JSON object with str keys"),
    ],
)
def test_wrong_arguments_get_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_a_prompt_may_begin_with_dashes(parser: Parser) -> None:
    args = build_parser().parse_args(["generate", "--seed", "1", "-- a dash", "--", "--temprature"])
    assert args.prompts == ["-- a dash", "--temprature"]
