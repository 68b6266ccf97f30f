"""The training data: every pair runs, the splits share nothing they must not, and a seed gives the same data again."""

import random

import pytest

from lightvllm.training import phrases
from lightvllm.training.conditions import Phraser
from lightvllm.training.generator import SPLITS, domains_of, make_sample
from lightvllm.training.schema import compose, parse_column
from lightvllm.training.words import article, plural

SAMPLES = 60


@pytest.mark.parametrize("split", SPLITS)
def test_every_pair_runs_and_is_asked_once(split: str) -> None:
    kinds = set()
    for index in range(SAMPLES):
        sample = make_sample(split, 3, index, 8)
        assert sample.schema
        assert len({pair.question for pair in sample.pairs}) == len(sample.pairs)
        for pair in sample.pairs:
            sample.connection.execute(pair.sql).fetchall()
            assert pair.question.strip() == pair.question
            assert "{" not in pair.question + pair.sql
            assert "~" not in pair.question
            kinds.add(pair.kind)
        sample.connection.close()
    assert len(kinds) > 12


def test_a_seed_gives_the_same_data_and_another_seed_other_data() -> None:
    def drawn(seed: int) -> list[tuple[str, list[tuple[str, str]]]]:
        samples = [make_sample("train", seed, index, 5) for index in (4, 1, 9)]
        return [(sample.schema, [(pair.question, pair.sql) for pair in sample.pairs]) for sample in samples]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_splits_do_not_meet() -> None:
    training, validation, test = (set(domains_of(split)) for split in ("train", "validation_domains", "unseen_domains"))
    assert len(training) >= 50
    assert len(validation) >= 10
    assert len(test) >= 10
    assert not training & validation
    assert not training & test
    assert not validation & test
    assert set(domains_of("large_schemas")) == validation | test
    assert set(domains_of("dev")) == set(domains_of("unseen_phrasings")) == training
    train, test = (
        {(sample.schema, pair.question) for index in range(SAMPLES) for sample in [make_sample(split, 3, index, 8)]
         for pair in sample.pairs}
        for split in ("train", "dev")
    )  # fmt: skip
    assert not train & test


def test_held_out_phrasings_are_never_used_in_training() -> None:
    training, held_out = Phraser(random.Random(0), False), Phraser(random.Random(0), True)
    pools = [*phrases.CONDITIONS.values(), *phrases.INTENTS.values(), *phrases.DIRECTIONS.values()]
    for pool in pools:
        kept = {phrase[1:] for phrase in pool if phrase.startswith("~")}
        known = {phrase for phrase in pool if not phrase.startswith("~")}
        assert kept, pool
        assert not kept & known
        assert {training.pick(pool) for _ in range(300)} == known
        assert {held_out.pick(pool) for _ in range(100)} == kept


def test_a_split_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="split: 'testing' is unknown"):
        make_sample("testing", 0, 0, 1)


def test_composed_schemas_are_all_different_and_well_formed() -> None:
    schemas = [compose(random.Random(seed)) for seed in range(80)]
    assert len({tuple(table.name for table in schema.tables) for schema in schemas}) == 80
    for schema in schemas:
        for table in schema.tables:
            names = [column.name.lower() for column in table.columns]
            assert len(set(names)) == len(names)
            assert table.key.kind == "key"


def test_columns_are_declared_in_plain_english() -> None:
    price, year, role = (parse_column(text) for text in ("price:5-60$", "opened:1850-2020", "home team>team"))
    assert (price.kind, price.low, price.high) == ("real", 5.0, 60.0)
    assert year.kind == "year"
    assert (role.phrase, role.kind, role.target) == ("home team", "ref", "team")
    assert parse_column("status:open|closed").values == ("open", "closed")


@pytest.mark.parametrize(
    ("one", "many"),
    [("story", "stories"), ("bus", "buses"), ("year of birth", "years of birth"), ("box", "boxes"), ("seats", "seats"),
     ("order item", "order items"), ("person", "people"), ("day", "days"), ("class", "classes")],
)  # fmt: skip
def test_plurals(one: str, many: str) -> None:
    assert plural(one) == many


def test_articles() -> None:
    assert [article(word) for word in ("age", "price", "seats", "class")] == ["an age", "a price", "seats", "a class"]
