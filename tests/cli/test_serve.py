"""`lightvllm serve`: where its settings come from. What it serves is tested in tests/server and tests/chaos."""

from pathlib import Path

import pytest

from lightvllm.cli.main import main
from lightvllm.config import DEFAULT_MODEL, EngineConfig, ServerConfig

Started = list[tuple[EngineConfig, ServerConfig]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The settings that servers would have been started with."""
    calls: Started = []

    def run_server(engine: EngineConfig, server: ServerConfig, debug: bool) -> int:
        calls.append((engine, server))
        return 0

    monkeypatch.setattr("lightvllm.server.run.run_server", run_server)
    return calls


def write(folder: Path, text: str) -> str:
    file = folder / "server.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_without_a_word_it_serves_the_default_model(started: Started) -> None:
    assert main(["serve"]) == 0
    [(engine, server)] = started
    assert engine.model == str(DEFAULT_MODEL)
    assert (engine.max_num_seqs, engine.max_num_batched_tokens) == (128, 2048)
    assert (server.host, server.port, server.api_keys()) == ("127.0.0.1", 8000, frozenset())


def test_flags_count_more_than_the_file_and_the_file_more_than_defaults(started: Started, tmp_path: Path) -> None:
    file = write(tmp_path, "port: 9000\nmax-num-seqs: 4\nblock_size: 32\napi-key: [a, b]\nmodel: somewhere\n")
    assert main(["serve", "--config", file, "--max-num-seqs", "7", "--api-key", "c"]) == 0
    [(engine, server)] = started
    assert (engine.model, engine.max_num_seqs, engine.block_size, server.port) == ("somewhere", 7, 32, 9000)
    assert server.api_keys() == {"c"}


def test_an_empty_file_changes_nothing(started: Started, tmp_path: Path) -> None:
    assert main(["serve", "--config", write(tmp_path, "# nothing yet\n"), "some/model"]) == 0
    assert started[0][0].model == "some/model"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot: 9000", "did you mean port?"),
        ("skip_tokenizer_init: true", "is no flag"),
        ("port: '9000'", "expected int"),
        ("api-key: secret", "expected list or None"),
        ("- port", "`flag: value`"),
        ("port: [", "cannot read"),
        ("port: 70000", "0 to 65535"),
        ("ssl-keyfile: key.pem", "one goes with the other"),
        ("ssl-ca-certs: ca.pem", "only with ssl_keyfile"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert main(["serve", "--config", write(tmp_path, text)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert not started


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "/nowhere/server.yaml"]) == 1
    assert "/nowhere/server.yaml" in capsys.readouterr().err


def test_a_model_is_named_once(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "one", "--model", "two"]) == 1
    assert "'one' and 'two'" in capsys.readouterr().err
    assert main(["serve", "one", "--model", "one"]) == 0


def test_keys_come_from_flags_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n\n  second \n", encoding="utf-8")
    monkeypatch.setenv("LIGHTVLLM_API_KEY", "third")
    assert ServerConfig(api_key=["fourth"], api_key_file=str(file)).api_keys() == {"first", "second", "third", "fourth"}
    file.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no key in it"):
        ServerConfig(api_key_file=str(file)).api_keys()
    with pytest.raises(ValueError, match="api_key_file: cannot read"):
        ServerConfig(api_key_file=str(tmp_path / "nothing")).api_keys()
    with pytest.raises(ValueError, match="a key is empty"):
        ServerConfig(api_key=[""]).api_keys()


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(ServerConfig(api_key=["secret"]))
