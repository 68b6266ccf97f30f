"""`chat` says what `LLM.chat` answers, and keeps the conversation."""

import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightvllm import LLM, SamplingParams
from lightvllm.cli.chat import Chat
from lightvllm.cli.main import main
from lightvllm.cli.partner import LocalPartner

GREEDY = SamplingParams(temperature=0, max_tokens=10)


@pytest.fixture(scope="module")
def llm(chat_model: Path) -> Iterator[LLM]:
    with LLM(chat_model, max_model_len=200) as llm:
        yield llm


def _say(messages: list[dict[str, str]], text: str) -> list[dict[str, str]]:
    return [*messages, {"role": "user", "content": text}]


def _reply(llm: LLM, messages: list[dict[str, str]]) -> str:
    return llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs[0].text


def test_a_piped_conversation(
    llm: LLM, chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["Hello", "", "And you?", "/reset", "Hello", "/system Be brief.", "Again", "/rest", "/exit", "never read"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    flags = ["--temperature", "0", "--max-tokens", "10", "--max-model-len", "200"]
    assert main(["chat", "--model", str(chat_model), *flags]) == 0
    printed = capsys.readouterr()

    first = _say([], "Hello")
    answers = [_reply(llm, first)]
    second = _say([*first, {"role": "assistant", "content": answers[0]}], "And you?")
    answers.append(_reply(llm, second))
    answers.append(answers[0])  # forgotten: as at the beginning
    system = {"role": "system", "content": "Be brief."}
    third = _say([system, *first, {"role": "assistant", "content": answers[2]}], "Again")
    answers.append(_reply(llm, third))
    assert printed.out == "".join(answer + "\n" for answer in answers)
    assert printed.err.count("[10 tokens, ") == 4
    assert "/rest is unknown, did you mean /reset?" in printed.err


def test_a_message_that_does_not_fit_leaves_the_conversation_as_it_was(
    llm: LLM, chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n" + "word " * 200 + "\nAnd you?\n"))
    flags = ["--temperature", "0", "--max-tokens", "10", "--max-model-len", "200"]
    assert main(["chat", "--model", str(chat_model), *flags]) == 1
    printed = capsys.readouterr()
    first = _say([], "Hello")
    answer = _reply(llm, first)
    second = _reply(llm, _say([*first, {"role": "assistant", "content": answer}], "And you?"))
    assert printed.out == f"{answer}\n{second}\n"
    assert "must have at most 199" in printed.err


def test_system_flag(
    llm: LLM, chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", "--model", str(chat_model), "--temperature", "0", "--max-tokens", "10", "--system", "Hm"]) == 0
    assert capsys.readouterr().out == _reply(llm, _say([{"role": "system", "content": "Hm"}], "Hello")) + "\n"


def test_only_the_context_limits_an_answer(
    chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert main(["chat", "--model", str(chat_model), "--max-model-len", "80", "--ignore-eos", "--seed", "1"]) == 0
    with LLM(chat_model) as llm:
        prompt = llm.get_tokenizer().apply_chat_template(_say([], "Hello"))
        num_prompt_tokens = len(llm.get_tokenizer().encode(prompt, add_special_tokens=False))
    assert f"[{80 - num_prompt_tokens} tokens, " in capsys.readouterr().err


def test_an_interrupt_stops_the_answer_and_not_the_program(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptingTerminal(io.StringIO):
        """The user presses Ctrl-C when the third piece of text appears."""

        num_pieces = 0

        def write(self, text: str) -> int:
            if text.strip():
                self.num_pieces += 1
                if self.num_pieces == 3:
                    signal.raise_signal(signal.SIGINT)
            return super().write(text)

    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
    whole = llm.chat(_say([], "Hello"), params, use_tqdm=False)[0].outputs[0].text
    chat = Chat(LocalPartner(llm, params))
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stdout", InterruptingTerminal())
    chat.say("Hello")
    said = chat.turns[-1]["content"]
    assert said
    assert whole.startswith(said)
    assert len(said) < len(whole) / 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert not llm.engine.has_unfinished_requests()
    assert llm.get_metrics().num_used_blocks == 0
    chat.say("Go on")
    assert len(chat.turns) == 4


def test_a_model_without_chat_template_says_so_at_once(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in chat_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer_config.json").unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["chat", "--model", str(tmp_path)]) == 1
    assert "error: chat_template: the tokenizer has none" in capsys.readouterr().err
