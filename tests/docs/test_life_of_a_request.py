"""docs/life-of-a-request.md against a request: it comes by the functions of the page, in their order."""

import sys
from types import FrameType
from typing import Any

from lightvllm import LLM, SamplingParams
from lightvllm.config import DEFAULT_MODEL
from tests.docs.pages import CODE_LINK, ROOT

PAGE = (ROOT / "docs" / "life-of-a-request.md").read_text(encoding="utf-8")


def hops() -> list[tuple[str, str]]:
    """(file, function) of each numbered hop of the offline half; the first function of a hop is the hop."""
    offline = PAGE.partition("## The server's way")[0]
    found = []
    for line in offline.splitlines():
        link = CODE_LINK.search(line)
        if link is not None and line[0].isdigit():
            found.append((link["path"], link["name"]))
    return found


def test_a_request_comes_by_every_hop_in_order() -> None:
    calls: dict[tuple[str, str], int] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{ROOT}/lightvllm/"):
            calls.setdefault((path.removeprefix(f"{ROOT}/"), frame.f_code.co_qualname), len(calls))

    with LLM(DEFAULT_MODEL, max_model_len=128, enforce_eager=True) as llm:
        prompt = "SELECT name FROM cities WHERE population > 10 AND country = 'Norway' ORDER BY"
        assert len(llm.get_tokenizer().encode(prompt)) > llm.config.block_size  # so that a block is registered
        sys.setprofile(note)
        try:
            llm.generate(prompt, SamplingParams(temperature=0, max_tokens=2), use_tqdm=False)
        finally:
            sys.setprofile(None)

    expected = hops()
    assert len(expected) > 40
    assert [hop for hop in expected if hop not in calls] == []
    assert sorted(expected, key=calls.__getitem__) == expected


def test_hops_are_numbered() -> None:
    for half in PAGE.split("## The server's way"):
        numbers = [int(line.partition(".")[0]) for line in half.splitlines() if line[:1].isdigit()]
        assert numbers == list(range(1, len(numbers) + 1))
