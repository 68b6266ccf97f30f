"""Draws databases and asks about them: the training data and the test splits, every pair executed before it is used.

Everything is a function of the seed: sample `i` of a split always comes out the same, whoever generates it.
"""

import random
import sqlite3
from dataclasses import dataclass
from functools import cache

from lightvllm.sql.schema import schema_prompt
from lightvllm.training import phrases
from lightvllm.training.domains import DOMAINS, TEST_DOMAINS, VALIDATION_DOMAINS
from lightvllm.training.joins import Joined
from lightvllm.training.questions import Maker, Pair
from lightvllm.training.rows import build_database, fill
from lightvllm.training.schema import Schema, compose, disguise, merge, parse_domains, vary

SPLITS = ("train", "dev", "validation_domains", "unseen_domains", "unseen_phrasings", "large_schemas")
_COMPOSED_SHARE = 0.5
_DISGUISED_SHARE = 0.6
_MERGED_SHARE = 0.12
_LARGE = 6  # domains in one database: some twenty tables, 900 tokens
_MAX_ROWS = 500


@dataclass
class Sample:
    """One database as the model sees it, and questions about it."""

    schema: str
    pairs: list[Pair]
    connection: sqlite3.Connection


@cache
def domains_of(split: str) -> dict[str, Schema]:
    """The handwritten domains a split draws from, by name."""
    every = parse_domains(DOMAINS)
    groups = {"validation_domains": VALIDATION_DOMAINS, "unseen_domains": TEST_DOMAINS,
              "large_schemas": VALIDATION_DOMAINS + TEST_DOMAINS}  # fmt: skip
    if split in groups:
        return {name: every[name] for name in groups[split]}
    return {name: schema for name, schema in every.items() if name not in VALIDATION_DOMAINS + TEST_DOMAINS}


def make_sample(split: str, seed: int, index: int, num_pairs: int) -> Sample:
    """Sample `index` of a split: a database and up to `num_pairs` questions about it.

    `train` and `dev` differ in the random stream alone; `validation_domains` and `unseen_domains` ask in training's
    words about domains training never saw; `unseen_phrasings` asks about training's domains in words training never
    used; `large_schemas` puts several unseen domains into one database. The caller closes the connection.
    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is unknown, expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"{seed}/{split}/{index}")
    domains = domains_of(split)
    if split in ("train", "dev") and rng.random() < _COMPOSED_SHARE:
        schema = compose(rng)
    elif split == "large_schemas":
        schema = vary(merge([domains[name] for name in rng.sample(sorted(domains), k=_LARGE)]), rng)
    elif split in ("train", "dev") and rng.random() < _MERGED_SHARE:
        schema = vary(merge([domains[name] for name in rng.sample(sorted(domains), k=rng.choice((2, 2, 3)))]), rng)
    elif split in ("train", "dev") and rng.random() < _DISGUISED_SHARE:
        schema = vary(disguise(domains[rng.choice(sorted(domains))], rng), rng)
    else:
        schema = vary(domains[rng.choice(sorted(domains))], rng)
    fill(schema, rng)
    connection = build_database(schema, rng)
    pairs = ask(schema, connection, rng, num_pairs, held_out=split == "unseen_phrasings")
    return Sample(schema_prompt(connection), pairs, connection)


def ask(schema: Schema, connection: sqlite3.Connection, rng: random.Random, count: int, held_out: bool) -> list[Pair]:
    """Up to `count` different questions; those SQLite refuses would be a bug, those without an answer are dropped."""
    asker = Joined(schema, rng, held_out)
    links = asker.links()
    pairs: dict[str, Pair] = {}
    for _ in range(count * 4):
        if len(pairs) >= count:
            break
        if links and rng.random() < 0.42:
            asker.link = rng.choice(links)
            makers = asker.joined_makers()
        else:
            asker.table = rng.choice(schema.tables)
            makers = asker.makers()
        pair = _draw(makers, rng)
        if pair is not None and _is_useful(connection, pair, rng):
            pair.question = _spoken(pair, rng)
            pairs.setdefault(pair.question, pair)
    return list(pairs.values())


def _draw(makers: list[tuple[Maker, float]], rng: random.Random) -> Pair | None:
    maker = rng.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]
    return maker()


def _is_useful(connection: sqlite3.Connection, pair: Pair, rng: random.Random) -> bool:
    """Whether the SQL runs and says something: an empty result is kept now and then only."""
    rows = connection.execute(pair.sql).fetchmany(_MAX_ROWS)
    empty = not rows or all(value is None for value in rows[0])
    return not empty or rng.random() < 0.15


def _spoken(pair: Pair, rng: random.Random) -> str:
    """The question as people type it: polite, terse, in lower case, without its mark."""
    question = pair.question
    first_word = question.split()[0]
    imperative = first_word in ("List", "Show", "Give", "Find", "Count", "Get", "Tell", "Name", "Sort", "Display")
    if imperative and rng.random() < 0.06:
        question = rng.choice(phrases.POLITE) + question[0].lower() + question[1:]
    elif rng.random() < 0.3 and f"'{first_word}" not in pair.sql:
        question = question[0].lower() + question[1:]
    if question.endswith("?"):
        question = question[:-1] if rng.random() < 0.25 else question
    elif rng.random() < 0.06:
        question += "."
    return question
