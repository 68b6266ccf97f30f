"""The model that ships: complete, small enough, the same in transformers and here, and able to answer the demo."""

from pathlib import Path

import pytest

from lightvllm import LLM, SamplingParams
from lightvllm.sql import DEMO_QUESTIONS, build_demo_database, build_messages, open_readonly, run_query, schema_prompt
from lightvllm.training.__main__ import default_model_folder
from lightvllm.training.evaluate import evaluate

transformers = pytest.importorskip("transformers")
FOLDER = default_model_folder()
GREEDY = SamplingParams(temperature=0.0, max_tokens=64)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(str(FOLDER), dtype="float32")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, str]]]:
    path = tmp_path_factory.mktemp("demo") / "demo.sqlite"
    build_demo_database(path)
    schema = schema_prompt(open_readonly(path))
    return [build_messages(schema, question) for question in DEMO_QUESTIONS]


def test_the_folder_is_complete_and_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                     "chat_template.jinja", "generation_config.json", "README.md"}  # fmt: skip
    assert (FOLDER / "model.safetensors").stat().st_size <= 40_000_000


def test_transformers_writes_the_same_tokens(llm: LLM, chats: list[list[dict[str, str]]]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")
    for chat, output in zip(chats, llm.chat(chats, GREEDY), strict=True):
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        assert ids["input_ids"][0].tolist() == output.prompt_token_ids
        written = theirs.generate(**ids, max_new_tokens=64)[0, ids["input_ids"].shape[1] :]
        assert written.tolist() == list(output.outputs[0].token_ids)


def test_it_answers_the_demo_questions(llm: LLM, chats: list[list[dict[str, str]]], tmp_path: Path) -> None:
    build_demo_database(tmp_path / "demo.sqlite")
    connection = open_readonly(tmp_path / "demo.sqlite")
    outputs = llm.chat(chats, GREEDY)
    results = [run_query(connection, output.outputs[0].text) for output in outputs]
    assert [result.error for result in results] == [None] * len(results)
    assert results[0].rows == [(18,)]
    assert all(result.rows for result in results)


def test_it_is_right_more_often_than_not_on_domains_it_never_saw(llm: LLM) -> None:
    # The whole measurement is `python -m lightvllm.training evaluate`; this notices a folder that went bad.
    outcomes = evaluate(
        lambda chats: [output.outputs[0].text for output in llm.chat(list(chats), GREEDY)], "unseen_domains", 99, 12, 5
    )
    assert sum(outcome.correct for outcome in outcomes) > 0.8 * len(outcomes)
