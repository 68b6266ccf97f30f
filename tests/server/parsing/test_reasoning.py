"""Reasoning is told from the answer: neither leaks into the other, wherever the tags stand and the text is cut."""

import pytest

from lightvllm.server.parsing import ContentDelta, ReasoningDelta, make_output_parser, reasoning_state
from tests.server.parsing.outputs import content_of, parse, reasoning_of


@pytest.mark.parametrize(
    ("prompt", "continued", "state"),
    [
        ("<|im_start|>assistant\n", None, "possible"),
        ("<|im_start|>assistant\n<think>\n", None, "open"),
        ("Assistant: <think>", None, "open"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", None, "off"),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", None, "possible"),
        ("<|im_start|>assistant\nSo far", "So far", "off"),
        ("<|im_start|>assistant\n<think>\nSo far", "<think>\nSo far", "open"),
        ("<|im_start|>assistant\n<think>\nSo\n</think>\nfar", "<think>\nSo\n</think>\nfar", "off"),
        ("<|im_start|>assistant\n<think>\n", "", "open"),
    ],
)
def test_the_prompt_tells_where_the_output_begins(prompt, continued, state):
    assert reasoning_state("think", prompt, continued) == state
    assert reasoning_state(None, prompt, continued) == "off"


@pytest.mark.parametrize(
    ("state", "text", "reasoning", "answer"),
    [
        ("possible", "<think>\nWhy?\n</think>\n\nSo.", "Why?", "So."),
        ("possible", "\n<think>Why?</think>So.", "Why?", "So."),
        ("open", "Why?\n</think>\n\nSo.", "Why?", "So."),
        ("open", "\n\n  Why?\n\n\tHow?\n\n</think>\n\n  So.\n", "  Why?\n\n\tHow?", "  So.\n"),
        ("open", "<think>\nWhy?\n</think>\n\nSo.", "Why?", "So."),
        ("open", "</think>So.", "", "So."),
        ("possible", "<think>\n\n</think>\n\nSo.", "", "So."),
        ("possible", "So.", "", "So."),
        ("possible", " \n So.", "", " \n So."),
        ("possible", " <thin> </think> <think> So.", "", " <thin> </think> <think> So."),
        ("possible", "So. <think>no</think>", "", "So. <think>no</think>"),
        ("off", "<think>no</think>So.", "", "<think>no</think>So."),
        (
            "open",
            "a<b </thin> <think> </think>x</think><think>y</think>",
            "a<b </thin> <think> ",
            "x</think><think>y</think>",
        ),
        ("open", "Never done\n", "Never done", ""),
        ("open", "Never done </thin", "Never done </thin", ""),
        ("possible", "<think>Never <tool_call>", "Never <tool_call>", ""),
        ("possible", "<thi", "", "<thi"),
        ("possible", " \n", "", " \n"),
        ("open", "", "", ""),
    ],
)
@pytest.mark.parametrize("tool_format", ["hermes", "llama3_json", None])
def test_reasoning_and_answer(state, text, reasoning, answer, tool_format):
    expected = [ReasoningDelta(reasoning)] * bool(reasoning) + [ContentDelta(answer)] * bool(answer)
    assert parse(text, tool_format, state) == expected
    assert parse(list(text), tool_format, state) == expected


@pytest.mark.parametrize("state", ["open", "possible"])
@pytest.mark.parametrize("is_cut", [True, False])
def test_an_output_that_ends_early_shows_no_half_tag(state, is_cut):
    full = ("" if state == "open" else "<think>\n") + "Why? Well\n\nso\n</think>\n\nThe answer"
    for end in range(len(full)):
        deltas = parse(full[:end], None, state, is_cut=is_cut)
        assert "The answer".startswith(content_of(deltas)) or (not is_cut and "<think>\n".startswith(full[:end]))
        if is_cut:
            assert "Why? Well\n\nso".startswith(reasoning_of(deltas))


def test_reasoning_is_held_back_only_while_its_end_may_follow():
    parser = make_output_parser(tool_format=None, reasoning="possible")
    assert parser.push("<think>\n") == []
    assert parser.push("Why? ") == [ReasoningDelta("Why? ")]
    assert parser.push("\n") == []
    assert parser.push("a </") == [ReasoningDelta("\na ")]
    assert parser.push("b") == [ReasoningDelta("</b")]
    assert parser.push("</think>\n") == []
    assert parser.push("S") == [ContentDelta("S")]
