"""`generate` prints what `LLM.generate` returns."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightvllm import LLM, SamplingParams
from lightvllm.cli.main import main
from lightvllm.outputs import RequestOutput

PROMPTS = ["The quick", "def add(a, b):", "naïve"]
GREEDY = ["--temperature", "0", "--max-tokens", "12"]


@pytest.fixture(scope="module")
def llm(chat_model: Path) -> Iterator[LLM]:
    with LLM(chat_model) as llm:
        yield llm


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[RequestOutput]:
    return llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)


def test_one_prompt_streams_its_text(
    chat_model: Path, expected: list[RequestOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", str(chat_model), *GREEDY, PROMPTS[0]]) == 0
    printed = capsys.readouterr()
    assert printed.out == expected[0].outputs[0].text + "\n"
    assert printed.err == ""


def test_a_streamed_text_comes_in_pieces(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr("sys.stdout", Terminal())
    assert main(["generate", "--model", str(chat_model), *GREEDY, PROMPTS[0]]) == 0
    assert sum(bool(piece.strip()) for piece in pieces) > 3


@pytest.mark.parametrize("source", ["arguments", "file", "stdin"])
def test_several_prompts_are_answered_in_order(
    source: str,
    chat_model: Path,
    expected: list[RequestOutput],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["generate", "--model", str(chat_model), *GREEDY]
    lines = "\n\n".join(PROMPTS) + "\n"
    if source == "arguments":
        command += PROMPTS
    elif source == "file":
        path = tmp_path / "prompts.txt"
        path.write_text(lines, encoding="utf-8")
        command += ["--file", str(path)]
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(command) == 0
    wanted = "".join(f"# {output.prompt}\n{output.outputs[0].text}\n" for output in expected)
    assert capsys.readouterr().out == wanted


def test_json_has_the_output_s_fields(
    chat_model: Path, expected: list[RequestOutput], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--model", str(chat_model), *GREEDY, "--json", *PROMPTS]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [record["prompt_token_ids"] for record in records] == [output.prompt_token_ids for output in expected]
    for record, output in zip(records, expected, strict=True):
        assert record["outputs"][0]["token_ids"] == output.outputs[0].token_ids
        assert record["outputs"][0]["text"] == output.outputs[0].text
        assert record["outputs"][0]["finish_reason"] == "length"
        assert 0 < record["metrics"]["time_to_first_token"] <= record["metrics"]["time_to_finish"]


def test_sampling_flags_reach_the_engine(llm: LLM, chat_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--n", "2", "--logprobs", "2", "--max-tokens", "5", "--min-p", "0.01", "--ignore-eos", "--seed", "7"]
    assert main(["generate", "--model", str(chat_model), "--json", *flags, PROMPTS[0]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [len(completion["token_ids"]) for completion in record["outputs"]] == [5, 5]
    assert record["outputs"][0]["token_ids"] != record["outputs"][1]["token_ids"]
    assert all(len(entry) >= 2 for entry in record["outputs"][0]["logprobs"])
    with LLM(chat_model, seed=7) as seeded:
        params = SamplingParams(n=2, logprobs=2, max_tokens=5, min_p=0.01, ignore_eos=True)
        output = seeded.generate(PROMPTS[0], params, use_tqdm=False)[0]
    assert [c["token_ids"] for c in record["outputs"]] == [c.token_ids for c in output.outputs]


def test_no_prompt_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n  \n"))
    assert main(["generate"]) == 1
    assert capsys.readouterr().err == "error: prompts: standard input has no line with text\n"
