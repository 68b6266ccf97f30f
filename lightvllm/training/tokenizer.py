"""The tokenizer: byte-level BPE that cuts text so that a name reads the same in schema, question and SQL.

Names never swallow the space before them (`price` is one token sequence after a space, a bracket or a dot), words split
at underscores and camel case, digits stand alone. What a small model sees often and never has to copy - SQL keywords,
`the`, `of` - takes its spaces along instead.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

_SQL_WORDS = (
    "SELECT DISTINCT|SELECT|FROM|WHERE|AND|OR|JOIN|ON|GROUP BY|HAVING|ORDER BY|DESC|ASC|LIMIT|BETWEEN|LIKE|NOT IN|IN|"
    "IS NULL|IS NOT NULL|NOT|AS"
)
_ENGLISH_WORDS = (
    "the|of|a|an|in|is|are|with|and|or|than|more|less|fewer|over|above|below|under|whose|that|which|for|each|every|per|by|"
    "to|from|all|any|have|has|do|does|their|there|where|who|most|least|at|on|not|no|number|average|total|many|it|one|was"
)
_TYPES = "int|real|text|date|bool|blob|key"
_PATTERN = (
    f" ?\\b(?:{_SQL_WORDS})\\b(?= |$) ?"
    f"| (?:{_ENGLISH_WORDS}|{_TYPES})\\b"
    "| -> |: |, | ?\\[|\\||\\n| [=<>!]+ "
    "|(?:COUNT|AVG|SUM|MAX|MIN|strftime)\\((?:\\*\\)|DISTINCT )?"
    "|[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|\\d| +|[^\\sA-Za-z\\d]"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE over the texts. Every byte has a token, so any text can be encoded and decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["system", "user", "assistant"] * 1000  # every chat has them, the texts have not
    tokenizer.train_from_iterator(itertools.chain(texts, roles), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja as transformers and vLLM read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def render_system(schema: str) -> str:
    """The part of a chat that every question about one database shares, as the chat template writes it."""
    return f"{START}system\n{schema}{END}\n"


def render_question(question: str) -> str:
    """The question's turn and the opening of the answer's."""
    return f"{START}user\n{question}{END}\n{START}assistant\n"
