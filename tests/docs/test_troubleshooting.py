"""docs/troubleshooting.md has every message that a user can meet, and none that nobody can."""

import re
from dataclasses import dataclass
from functools import cached_property

import pytest

from tests.docs.messages import BLANK, ROOT, user_messages

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
# Its entries are forms that many messages have, which say themselves what to do.
FORMS = "Messages that say what is right"
MESSAGES = user_messages()


@dataclass(frozen=True)
class Entry:
    """A message as a reader sees it, "..." for what varies; of a form, for any words."""

    text: str
    is_form: bool

    def matches(self, message: str) -> bool:
        """Whether it stands for this message. But for forms, all words must be there."""
        return self._pattern.fullmatch(message) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        varying = ".*" if self.is_form else "[^A-Za-z]*"
        return re.compile(varying.join(map(re.escape, self.text.split("..."))), re.DOTALL)


def rows() -> list[tuple[str, str, str]]:
    """Of all tables: section, what one sees, what to do."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = section.partition("\n")
        lines = [line for line in text.splitlines() if line.startswith("| `")]
        found += [(title, *line.strip("| ").split(" | ")) for line in lines]
    return found  # type: ignore[return-value]


ENTRIES = [
    Entry(text.strip(), section == FORMS)
    for section, seen, _ in rows()
    for _, text in re.findall(r"(`+)(.+?)\1(?!`)", seen)
]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("api_key: a key is empty", "config.py"),
        (f"config.json: {BLANK} is {BLANK}, expected a positive integer", "model_config.py"),
        # Through a function that makes the exception.
        ("structured_outputs: choice must be a list of strings", "sampling_params.py"),
        (f"structured_outputs: json: enum at {BLANK} must be a list of at least one value", "json_schema.py"),
        # Held by a variable; logged; assigned to a request; printed by the installation.
        (f"content-type: {BLANK} is not supported, expected application/json", "body.py"),
        (f"the engine is started again in {BLANK} s", "supervisor.py"),
        ("the model's logits contain NaN", "sampler.py"),
        ("lightvllm: no torch to build the CPU kernels against; install with --no-build-isolation", "setup.py"),
    ],
)
def test_messages_are_found(text: str, place: str) -> None:
    """It would be easy to miss nothing by seeing nothing."""
    assert [message for message in MESSAGES if message.text == text and place in message.place]


def test_every_message_has_an_entry() -> None:
    missing = [message for message in MESSAGES if not any(entry.matches(message.text) for entry in ENTRIES)]
    shown = [f"{message.place}: `{message.text.replace(BLANK, '...')}`" for message in missing]
    assert not missing, "docs/troubleshooting.md lacks\n" + "\n".join(shown)


def test_every_entry_is_of_a_message() -> None:
    assert not [entry.text for entry in ENTRIES if not any(entry.matches(message.text) for message in MESSAGES)]
    too_general = [entry.text for entry in ENTRIES if sum(map(str.isalpha, entry.text)) < 4]
    assert not too_general, "these tell nobody anything"


def test_every_row_has_a_cure() -> None:
    assert len(rows()) > 50
    for row in rows():
        assert len(row) == 3, row
        assert len(row[2]) >= 8, row


def test_no_entry_twice() -> None:
    assert len(ENTRIES) == len(set(ENTRIES))
