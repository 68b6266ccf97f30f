# ruff: noqa: E501 - the slots are longer than what fills them
"""The model card: what the default model is, what it was trained on, and how often it was right."""

from pathlib import Path

from safetensors import safe_open

from lightvllm.training.domains import TEST_DOMAINS
from lightvllm.training.evaluate import Outcome, accuracy_table
from lightvllm.training.generator import domains_of
from lightvllm.training.recipe import Recipe

_TEMPLATE = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [text-to-sql, sqlite, qwen3]
---

# LightvLLM's default model: a small text-to-SQL writer

{parameters:.1f} million parameters, Qwen3 architecture, trained from scratch by LightvLLM's own recipe.
It turns an English question about a SQLite database into one SELECT statement. It is here so that the engine has
something real to run without a download; it is no rival of models a thousand times its size.

```bash
lightvllm sql --db FILE.sqlite "Which customers are from Paris?"
```

## How to ask

The system message is the schema in one line a table, as `lightvllm.sql.schema_prompt` writes it; the user message is
the question. Values are to be named in the question as they are in the database. Decode greedily.

```
books: book_id int key, title text, author_id int -> authors.author_id, genre text [Crime|Fantasy], published date
authors: author_id int key, name text, country text
```

## What it was trained on

Nothing but generated data: {domains} handwritten domains with varying tables, columns, orders and naming styles, many of
them with other words put in, and randomly composed schemas, a part of whose names are made-up words. Every question was
paired with SQL that had been run on a SQLite database with rows. {samples:,} databases with up to {pairs} questions each;
select, filter, aggregate, group, having, order, limit, join, distinct, between, in, like and nested queries, several
phrasings for each.

Held out: {held_out} whole domains ({held_out_names}),
a dozen others that served for validation, and every phrasing marked `~` in `lightvllm/training/phrases.py`.

## How often it is right

Execution accuracy through the LightvLLM engine, greedy: the share of questions whose SQL gives the same rows as the
reference on a filled database. `unseen_domains` asks in training's phrasings about domains that were written when a
first version of the model was done; their total was looked at once before the last training, their errors never. The
errors on `validation_domains` and `unseen_phrasings` (training's domains in phrasings training never used) were looked
at while the generator was built. `large_schemas` puts six unseen domains into one database of some twenty tables, about
900 tokens: far above what training mostly saw. Of the {questions:,} statements {failed:,} did not run at all.

{table}

All splits come from the same generator as the training data. On questions people type freely the model is weaker:
it knows the kinds of query above and little English beyond them.

## What it cannot do

Databases of many tables, as the last column shows; more than two joins, unions, window functions, arithmetic between columns, CASE, conversation over several turns, any
language but English; it does not know that it does not know and will write some SQL for any input. Run what it writes
read-only, as `lightvllm sql` does.

## How it was made

`make model` (`python -m lightvllm.training`) goes from nothing to this folder: seed {seed}, {steps:,} steps of
{batch_size} packed databases, AdamW, bf16 autocast. The data is the same everywhere; the weights differ in their last
bits from one machine to another, and so may a few answers.
"""


def write_card(folder: Path, recipe: Recipe, outcomes: list[Outcome]) -> None:
    """Writes README.md into the model's folder."""
    with safe_open(folder / "model.safetensors", "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 (no mapping)
    failed = sum(outcome.error is not None for outcome in outcomes)
    text = _TEMPLATE.format(
        parameters=parameters / 1e6,
        domains=len(domains_of("train")),
        samples=recipe.train_samples,
        pairs=recipe.pairs,
        held_out=len(TEST_DOMAINS),
        held_out_names=", ".join(sorted(TEST_DOMAINS)),
        questions=len(outcomes),
        failed=failed,
        table=accuracy_table(outcomes),
        seed=recipe.seed,
        steps=recipe.train.steps,
        batch_size=recipe.train.batch_size,
    )
    (folder / "README.md").write_text(text)
