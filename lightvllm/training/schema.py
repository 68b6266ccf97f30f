"""Schemas of the training data: handwritten domains, randomly composed ones, and how both get their SQL names.

A `Column` keeps what English calls it (`phrase`) apart from what the database calls it (`name`), so that one domain
gives many databases: other columns, other orders, other naming styles.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from lightvllm.sql.schema import quote_name
from lightvllm.training import words

# Kinds a column phrase stands for by itself.
_IMPLIED_KINDS = {"city": "city", "country": "country", "email": "email", "title": "title", "year": "year"}
LABEL_KINDS = ("person", "org", "title", "thing", "place", "code")
_LABEL_WORDS = ("name", "title", "label", "model", "nickname", "username", "hostname", "plate", "address", "topic",
                "text", "number")  # fmt: skip
TEXT_KINDS = (*LABEL_KINDS, "city", "country", "email", "word")
NUMBER_KINDS = ("int", "real", "year")


@dataclass
class Column:
    """`kind` is one of key, ref, int, real, year, date, flag, category or a text kind."""

    phrase: str
    kind: str
    low: float = 0
    high: float = 0
    values: tuple[str, ...] = ()
    target: str = ""  # noun of the table a ref points to
    nullable: bool = False
    name: str = ""

    @property
    def sql(self) -> str:
        """The name as SQL writes it."""
        return quote_name(self.name)


@dataclass
class Table:
    """`noun` is the English singular of what a row is."""

    noun: str
    columns: list[Column]
    name: str = ""
    rows: list[dict[str, object]] = field(default_factory=list)

    @property
    def sql(self) -> str:
        """The name as SQL writes it."""
        return quote_name(self.name)

    @property
    def key(self) -> Column:
        """The primary key."""
        return next(column for column in self.columns if column.kind == "key")

    @property
    def label(self) -> Column:
        """The column that names a row for a person, by its words alone (all a model sees); the key where none does."""
        named = [c for c in self.columns if c.kind in LABEL_KINDS and c.phrase.split()[-1] in _LABEL_WORDS]
        named.sort(key=lambda column: _LABEL_WORDS.index(column.phrase.split()[-1]))
        return named[0] if named else self.key

    def of_kind(self, *kinds: str) -> list[Column]:
        """The columns of these kinds, in order."""
        return [column for column in self.columns if column.kind in kinds]


@dataclass
class Schema:
    """The tables of one database."""

    domain: str
    tables: list[Table]

    def table(self, noun: str) -> Table:
        """The table of that noun."""
        return next(table for table in self.tables if table.noun == noun)


def parse_column(text: str) -> Column:
    """A column from its declaration in `domains.py`."""
    if ">" in text:
        role, _, target = text.partition(">")
        return Column(role or target, "ref", target=target)
    phrase, _, kind = text.partition(":")
    kind = kind or _IMPLIED_KINDS[phrase]
    if "|" in kind:
        return Column(phrase, "category", values=tuple(kind.split("|")))
    if kind[0].isdigit():
        low, _, high = kind.rstrip("$").partition("-")
        if kind.endswith("$"):
            return Column(phrase, "real", float(low), float(high))
        is_year = 1000 <= int(low) <= 2010 and 1900 <= int(high) <= 2030
        return Column(phrase, "year" if is_year else "int", int(low), int(high))
    if kind == "year":
        return Column(phrase, "year", 1985, 2024)
    return Column(phrase, kind)


def parse_domains(text: str) -> dict[str, Schema]:
    """Every domain of the declarative text, by name."""
    domains: dict[str, Schema] = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        if line.startswith("#"):
            schema = Schema(line[1:].strip(), [])
            domains[schema.domain] = schema
        else:
            noun, *columns = (part.strip() for part in line.split(";"))
            schema.tables.append(Table(noun, [Column("id", "key"), *map(parse_column, columns)]))
    return domains


def merge(sources: list[Schema]) -> Schema:
    """One large database out of several domains; of tables with the same noun the first one stays."""
    tables: dict[str, Table] = {}
    for source in sources:
        for table in source.tables:
            tables.setdefault(table.noun, table)
    return Schema("merged", list(tables.values()))


def vary(source: Schema, rng: random.Random) -> Schema:
    """A database of the domain: some of its tables and columns, in another order, with names of one style."""
    tables = list(source.tables)
    if source.domain == "merged":
        pass
    elif rng.random() < 0.5 and len(tables) > 2:
        start = rng.randrange(len(tables) - 1)
        tables = tables[start : start + rng.randint(1, 3)]
    elif rng.random() < 0.15:
        tables = [rng.choice(tables)]
    nouns = {table.noun for table in tables}
    varied = []
    for table in tables:
        columns = []
        for column in table.columns:
            dropped = rng.random() < 0.2 and column.kind not in ("key", "ref") and column is not table.label
            if dropped or (column.kind == "ref" and column.target not in nouns):
                continue
            columns.append(Column(**{**column.__dict__}))
        varied.append(Table(table.noun, columns))
    return _finish(Schema(source.domain, varied), rng)


def disguise(source: Schema, rng: random.Random) -> Schema:
    """The domain with other words: its structure stays, many nouns and columns are drawn from the pools instead.

    What is left is nothing to know by heart: a model has to read the schema.
    """
    strange = rng.choice((0.1, 0.3, 0.7))

    def word(pool: list[str]) -> str:
        return words.made_up_word(rng) if rng.random() < strange else rng.choice(pool)

    nouns = {table.noun: table.noun for table in source.tables}
    for table in source.tables:
        noun = word(words.TABLE_NOUNS)
        if rng.random() < 0.25:
            noun = f"{rng.choice(words.TABLE_NOUNS)} {noun}"
        if rng.random() < 0.6 and noun not in nouns and noun not in nouns.values():
            nouns[table.noun] = noun
    pools = {"int": words.NUMBER_HEADS, "real": words.NUMBER_HEADS, "category": words.CATEGORY_HEADS,
             "date": words.DATE_HEADS, "flag": words.FLAG_WORDS}  # fmt: skip
    tables = []
    for table in source.tables:
        columns: list[Column] = []
        for column in table.columns:
            changes: dict[str, str] = {}
            if column.kind == "ref" and column.target in nouns:
                phrase = nouns[column.target] if column.phrase == column.target else column.phrase
                changes = {"target": nouns[column.target], "phrase": phrase}
            elif column.kind in pools and rng.random() < 0.5:
                phrase = word(pools[column.kind])
                if phrase not in {other.phrase for other in (*table.columns, *columns)}:
                    changes = {"phrase": phrase}
            columns.append(Column(**{**column.__dict__, **changes}))
        tables.append(Table(nouns[table.noun], columns))
    return Schema(source.domain, tables)


def compose(rng: random.Random) -> Schema:
    """A database nobody wrote: nouns and columns drawn from the pools, a part of them made-up words."""
    nouns: list[str] = []
    count = rng.choice((1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5))
    if rng.random() < 0.06:
        count = rng.randint(6, 10)
    strange = rng.choice((0.1, 0.2, 0.6))

    def noun() -> str:
        if nouns and rng.random() < 0.2:  # game and gamer, sale and salesperson: names that only differ at the end
            return rng.choice(nouns).split()[-1][: rng.randint(3, 9)] + rng.choice(words.NOUN_ENDINGS)
        if rng.random() < strange:
            return words.made_up_word(rng)
        head = rng.choice(words.TABLE_NOUNS)
        first = rng.choice(words.TABLE_NOUNS if rng.random() < 0.7 else words.EXTRA_ADJECTIVES)
        return f"{first} {head}" if rng.random() < 0.3 else head

    while len(nouns) < count:
        candidate = noun()
        if candidate not in nouns:
            nouns.append(candidate)
    tables = [Table(name, _random_columns(rng, nouns[:index], strange)) for index, name in enumerate(nouns)]
    return _finish(Schema("composed", tables), rng)


def _random_columns(rng: random.Random, earlier: list[str], strange: float) -> list[Column]:
    columns = [Column("id", "key")]
    targets = rng.sample(earlier, k=min(len(earlier), rng.choice((0, 1, 1, 1, 2, 2))))
    for target in targets:
        role = rng.choice(words.ROLE_WORDS) if rng.random() < 0.12 else target
        columns.append(Column(role, "ref", target=target))
    body = []
    if rng.random() < 0.75:
        phrase = rng.choice(("name", "name", "name", "name", "title", "label", *_LABEL_WORDS))
        kind = rng.choice(("person", "thing", "thing", "org", "title", "place", "code"))
        if phrase in ("plate", "number"):
            phrase, kind = (phrase if phrase == "plate" else f"{rng.choice(words.TABLE_NOUNS)} number"), "code"
        body.append(Column(phrase, kind))
    makers: list[Callable[[], Column]] = [
        lambda: _random_number(rng, strange),
        lambda: _random_number(rng, strange),
        lambda: _random_category(rng, strange),
        lambda: Column(rng.choice(words.TEXT_HEADS), "word"),
        lambda: _random_date(rng),
        lambda: Column(rng.choice(words.FLAG_WORDS), "flag"),
        lambda: Column(kind := rng.choice(("city", "country", "email")), kind),
    ]
    weights = (5, 2, 4, 1, 2, 1, 1.5)
    used = {column.phrase for column in columns + body}
    wanted = len(body) + rng.randint(2, 5)
    while len(body) < wanted:
        column = rng.choices(makers, weights)[0]()
        if column.phrase not in used:
            used.add(column.phrase)
            body.append(column)
    if rng.random() < 0.3:
        rng.shuffle(body)
    return columns + body


def _random_number(rng: random.Random, strange: float) -> Column:
    if rng.random() < strange * 0.6:
        phrase = words.made_up_word(rng)
    else:
        phrase = rng.choice(words.NUMBER_HEADS)
        if rng.random() < 0.4:
            other = words.NUMBER_MODIFIERS if rng.random() < 0.6 else words.TABLE_NOUNS + words.EXTRA_ADJECTIVES
            phrase = f"{rng.choice(other)} {phrase}"
    high = rng.choice((9, 50, 100, 500, 2000, 9000, 100000, 2000000))
    if rng.random() < 0.35 and high < 100000:
        return Column(phrase, "real", 0, float(high))
    return Column(phrase, "int", 0, high)


def _random_category(rng: random.Random, strange: float) -> Column:
    phrase = words.made_up_word(rng) if rng.random() < strange * 0.6 else rng.choice(words.CATEGORY_HEADS)
    if rng.random() < 0.15:
        phrase = f"{rng.choice(words.TABLE_NOUNS)} {phrase}"
    if rng.random() < 0.4:
        values = tuple(rng.choice(words.CATEGORY_VALUES).replace("_", " ").split("|"))
    else:
        makers: tuple[Callable[[], str], ...] = (
            lambda: words.made_up_word(rng),
            lambda: rng.choice(words.TABLE_NOUNS),
            lambda: rng.choice(words.EXTRA_ADJECTIVES),
            lambda: rng.choice(words.THINGS).lower(),
        )
        maker = rng.choice(makers)
        values = tuple(dict.fromkeys(maker() for _ in range(rng.randint(3, 7))))
        if rng.random() < 0.3:
            values = tuple(value.capitalize() for value in values)
    return Column(phrase, "category", values=values)


def _random_date(rng: random.Random) -> Column:
    if rng.random() < 0.15:
        return Column("year", "year", 1985, 2024)
    if rng.random() < 0.15:
        return Column(words.made_up_word(rng) + rng.choice(("", " date")), "date")
    if rng.random() < 0.5:
        return Column(f"{rng.choice(words.DATE_NOUNS)} date", "date")
    return Column(f"{rng.choice(words.DATE_HEADS)} {rng.choice(('date', 'at', 'on', ''))}".strip(), "date")


def _finish(schema: Schema, rng: random.Random) -> Schema:
    """Shuffles, marks nullable columns, and names every table and column in the style of one imagined author."""
    if rng.random() < 0.3:
        rng.shuffle(schema.tables)
    style = rng.choices(_STYLES, (60, 6, 6, 8, 5, 5))[0]
    number = words.plural if rng.random() < 0.65 else str
    table_prefix = rng.choice(("tbl_", "t_", "app_", words.made_up_word(rng)[:3] + "_")) if rng.random() < 0.06 else ""
    own_key = rng.random() < 0.5  # book_id rather than id
    key_word = rng.choice(("id",) * 8 + ("no",))
    column_prefix = rng.random() < 0.04
    taken: set[str] = set()
    for table in schema.tables:
        table.name = table_prefix + style(number(table.noun))
        while table.name.lower() in taken:  # `order item` and `orderitem` may come out alike
            table.name += "2"
        taken.add(table.name.lower())
        for column in table.columns:
            column.name = _column_name(column, table, style, own_key, key_word)
            if column_prefix and column.kind not in ("key", "ref"):
                column.name = style(f"{table.noun.split()[-1][:3]} {column.phrase}")
            if column.kind not in ("key", "ref", "flag") and column is not table.label:
                column.nullable = rng.random() < 0.12
        # A name may come up twice (a column `id code` beside the key): the first one stays.
        table.columns = list({column.name.lower(): column for column in reversed(table.columns)}.values())[::-1]
        if rng.random() < 0.3:
            rest = table.columns[1:]
            rng.shuffle(rest)
            table.columns[1:] = rest
    return schema


def _column_name(column: Column, table: Table, style: Callable[[str], str], own_key: bool, key_word: str) -> str:
    if column.kind == "key":
        return style(f"{table.noun} {key_word}" if own_key else key_word)
    if column.kind == "ref":
        return style(f"{column.phrase} {key_word}")
    if column.kind == "flag" and len(column.phrase) % 2 and not column.phrase.endswith(("only", "by")):
        return style(f"is {column.phrase}")
    return style(column.phrase)


def _snake(phrase: str) -> str:
    return phrase.replace(" ", "_")


def _camel(phrase: str) -> str:
    head, *rest = phrase.split()
    return head + "".join(word.capitalize() for word in rest)


def _pascal(phrase: str) -> str:
    return "".join(word.capitalize() for word in phrase.split())


def _upper(phrase: str) -> str:
    return phrase.replace(" ", "_").upper()


def _joined(phrase: str) -> str:
    return phrase.replace(" ", "")


def _spaced(phrase: str) -> str:
    return phrase.capitalize() if len(phrase) % 2 else phrase


_STYLES: tuple[Callable[[str], str], ...] = (_snake, _camel, _pascal, _upper, _joined, _spaced)
