"""Questions and their SQL: one method a kind of query, over one table here, over several in `joins.py`.

The SQL has one canonical form. A query over one table names its columns bare; a query over several writes
`table.column` everywhere, starts at the table that holds the foreign key, and uses no aliases.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from lightvllm.training import phrases, words
from lightvllm.training.conditions import Conditions, NounPhrase, Phraser, comparison_head, sql_literal
from lightvllm.training.schema import Column, Schema, Table


@dataclass
class Pair:
    """One question with the SQL that answers it; `kind` groups the evaluation."""

    question: str
    sql: str
    kind: str


Maker = Callable[[], Pair | None]


class SingleTable:
    """Questions about one table of a schema with rows. Each method gives None where the table does not allow it."""

    def __init__(self, schema: Schema, rng: random.Random, held_out: bool) -> None:
        self.schema = schema
        self.rng = rng
        self.phraser = Phraser(rng, held_out)
        self.conditions = Conditions(self.phraser)
        self.table = schema.tables[0]

    def makers(self) -> list[tuple[Maker, float]]:
        """Every kind of question with how often it is asked."""
        return [
            (self.rows, 4), (self.columns, 12), (self.which, 8), (self.count, 10), (self.aggregate, 11),
            (self.two_aggregates, 2), (self.distinct, 5), (self.count_distinct, 3), (self.order, 8),
            (self.superlative, 11), (self.superlative_value, 2), (self.top_n, 7), (self.group_count, 8),
            (self.group_aggregate, 7), (self.having_count, 5), (self.having_aggregate, 3), (self.group_superlative, 5),
            (self.group_period, 1.5), (self.lookup, 8),
        ]  # fmt: skip

    def say(self, intent: str, sql: str, kind: str, **slots: str) -> Pair:
        """The pair, in one of the intent's phrasings."""
        return Pair(self.phraser.pick(phrases.INTENTS[intent]).format(**slots), sql, kind)

    def _columns_of(self, table: Table, *kinds: str) -> list[Column]:
        columns = table.of_kind(*kinds)
        self.rng.shuffle(columns)
        return columns

    def _shown(self, table: Table, most: int = 3) -> list[Column]:
        """Some columns to show, the one that names a row more often than others."""
        columns = [column for column in table.columns if column.kind not in ("key", "ref")]
        if not columns:
            return [table.key]
        chosen = self.rng.sample(columns, k=min(len(columns), self.rng.choices((1, 2, 3), (55, 33, 12))[0], most))
        label = table.label
        if label in columns and label not in chosen and self.rng.random() < 0.5:
            chosen[0] = label
        return chosen

    def _listed(self, columns: list[Column]) -> str:
        """`name`, `name and price`, `name, price and stock`; one column alone sometimes in the plural."""
        names = [self.phraser.name(column) for column in columns]
        if len(names) == 1:
            return words.plural(names[0]) if self.rng.random() < 0.5 else names[0]
        if self.rng.random() < 0.1:
            names = [words.plural(name) for name in names]
        return ", ".join(names[:-1]) + " and " + names[-1]

    def _most(self, direction: str) -> str:
        return self.phraser.pick(phrases.MOST[direction])

    def _direction(self) -> str:
        return self.rng.choice(("DESC", "DESC", "ASC"))

    def rows(self) -> Pair | None:
        """SELECT * ."""
        np = self.conditions.noun_phrase(self.table)
        return self.say("rows", f"SELECT * FROM {self.table.sql}{np.where()}", "select", np=np.text)

    def columns(self) -> Pair | None:
        """Some columns of the rows."""
        np = self.conditions.noun_phrase(self.table, (25, 52, 23))
        shown = self._shown(self.table)
        sql = f"SELECT {', '.join(c.sql for c in shown)} FROM {self.table.sql}{np.where()}"
        if not np.conditions and self.rng.random() < 0.3:
            return self.say("columns_each", sql, "select", one=self.table.noun, cols=self._listed(shown))
        return self.say("columns", sql, self._filter_kind(np), np=np.text, cols=self._listed(shown))

    def _filter_kind(self, np: NounPhrase) -> str:
        text = np.where()
        for mark, kind in (("(SELECT", "nested"), ("BETWEEN", "between"), (" IN (", "in"), ("LIKE", "like")):
            if mark in text:
                return kind
        return "filter" if text else "select"

    def _predicate(self, np: NounPhrase) -> str:
        """The one condition as a predicate: `with a price above 5` becomes `have a price above 5`; else nothing."""
        if len(np.conditions) != 1 or np.conditions[0].before:
            return ""
        text = np.conditions[0].text
        first, _, rest = text.partition(" ")
        person = np.table.label.kind == "person"
        if first in ("with", "having"):
            return f"have {rest}"
        if first in ("that", "which", "who"):
            return rest
        if np.conditions[0].column.kind in ("city", "country") and first in ("from", "in"):
            verbs = {"from": ("are from", "come from"), "in": ("are in", "live in" if person else "are located in")}
            return f"{self.rng.choice(verbs[first])} {rest}"
        if first in ("from", "in", "based", "located", "situated") or (
            " than " in text and first.endswith(("er", "more"))
        ):
            return f"are {text}"
        return f"were {text}" if first in words.DATE_HEADS else ""

    def which(self) -> Pair | None:
        """The names of the rows that meet a condition."""
        np = self.conditions.with_condition(self.table)
        if not np.conditions:
            return None
        sql = f"SELECT {self.table.label.sql} FROM {self.table.sql}{np.where()}"
        predicate = self._predicate(np)
        if predicate and self.rng.random() < 0.5:
            return self.say(
                "which_predicate", sql, self._filter_kind(np), many=words.plural(self.table.noun), p=predicate
            )
        person = self.table.label.kind == "person" and self.rng.random() < 0.25
        return self.say("who" if person else "which", sql, self._filter_kind(np), np=np.text)

    def lookup(self) -> Pair | None:
        """One column of the row of that name."""
        table, label = self.table, self.table.label
        columns = [c for c in table.columns if c.kind not in ("key", "ref") and c is not label]
        values = [row[label.name] for row in table.rows if isinstance(row[label.name], str)]
        if not columns or not values:
            return None
        column, value = self.rng.choice(columns), str(self.rng.choice(values))
        sql = f"SELECT {column.sql} FROM {table.sql} WHERE {label.sql} = {sql_literal(value)}"
        shared = sum(any(c.phrase == column.phrase for c in other.columns) for other in self.schema.tables) > 1
        intent = "lookup_noun" if shared or self.rng.random() < 0.5 else "lookup"
        return self.say(intent, sql, "filter", c=self.phraser.name(column), one=table.noun, v=self.phraser.value(value))

    def count(self) -> Pair | None:
        """COUNT(*)."""
        np = self.conditions.noun_phrase(self.table, (20, 60, 20))
        sql = f"SELECT COUNT(*) FROM {self.table.sql}{np.where()}"
        rest = np.text[len(np.head) + 1 :]
        predicate = self._predicate(np)
        if predicate and self.rng.random() < 0.35:
            return self.say("count_predicate", sql, "count", many=words.plural(self.table.noun), p=predicate)
        if rest and self.rng.random() < 0.25:
            return self.say("count_split", sql, "count", head=np.head, rest=rest)
        return self.say("count", sql, "count", np=np.text)

    def aggregate(self) -> Pair | None:
        """One of AVG, SUM, MAX and MIN."""
        columns = self._columns_of(self.table, "int", "real", "year")
        if not columns:
            return None
        function = self.rng.choice(("AVG", "SUM", "MAX", "MIN"))
        if columns[0].kind == "year" and function == "SUM":
            function = "MAX"
        np = self.conditions.noun_phrase(self.table)
        sql = f"SELECT {function}({columns[0].sql}) FROM {self.table.sql}{np.where()}"
        return self.say(function.lower(), sql, "aggregate", np=np.text, c=self.phraser.name(columns[0]))

    def two_aggregates(self) -> Pair | None:
        """Two aggregates of one column."""
        columns = self._columns_of(self.table, "int", "real")
        if not columns:
            return None
        first, second = self.rng.sample(list(phrases.AGGREGATES), k=2)
        np = self.conditions.noun_phrase(self.table, (60, 35, 5))
        column = columns[0]
        sql = f"SELECT {first}({column.sql}), {second}({column.sql}) FROM {self.table.sql}{np.where()}"
        f, g = (self.phraser.pick(phrases.AGGREGATES[name]) for name in (first, second))
        return self.say("two_aggs", sql, "aggregate", np=np.text, c=column.phrase, f=f, g=g)

    def _groupable(self, table: Table) -> list[Column]:
        return self._columns_of(table, "category", "city", "country", "year", "category")

    def distinct(self) -> Pair | None:
        """SELECT DISTINCT."""
        columns = self._groupable(self.table)
        if not columns:
            return None
        np = self.conditions.noun_phrase(self.table, (70, 25, 5), columns[0])
        sql = f"SELECT DISTINCT {columns[0].sql} FROM {self.table.sql}{np.where()}"
        return self.say("distinct", sql, "distinct", np=np.text, cs=words.plural(columns[0].phrase))

    def count_distinct(self) -> Pair | None:
        """COUNT(DISTINCT)."""
        columns = self._groupable(self.table)
        if not columns:
            return None
        np = self.conditions.noun_phrase(self.table, (70, 25, 5), columns[0])
        sql = f"SELECT COUNT(DISTINCT {columns[0].sql}) FROM {self.table.sql}{np.where()}"
        return self.say("count_distinct", sql, "distinct", np=np.text, cs=words.plural(columns[0].phrase))

    def order(self) -> Pair | None:
        """ORDER BY without a limit."""
        table = self.table
        columns = self._columns_of(table, "int", "real", "year", "date")
        label = table.label
        by = label if not columns or (self.rng.random() < 0.25 and label.kind != "key") else columns[0]
        if by.kind == "key":
            return None
        direction = self.rng.choice(("ASC", "DESC"))
        family = "date" if by.kind in ("date", "year") else "number" if by.kind in ("int", "real") else "text"
        np = self.conditions.noun_phrase(table, (60, 33, 7))
        shown = self._shown(table)
        said = self.phraser.pick(phrases.DIRECTIONS[f"{family} {direction}"]).format(c=self.phraser.name(by))
        sql = f"SELECT {', '.join(c.sql for c in shown)} FROM {table.sql}{np.where()} ORDER BY {by.sql}"
        sql += " DESC" if direction == "DESC" else ""
        return self.say("order", sql, "order", np=np.text, cols=self._listed(shown), o=said)

    def _ranked(self, direction: str) -> tuple[Column, str | None] | None:
        """A column rows can be ranked by, and the superlative adjective English has for it, if any."""
        columns = self._columns_of(self.table, "int", "real", "int", "real", "year", "date")
        if not columns:
            return None
        column = columns[0]
        side = 0 if direction == "DESC" else 1
        if column.kind in ("year", "date"):
            if len(self.table.of_kind("year", "date")) > 1 or "end" in column.phrase or "year" in column.phrase[:-4]:
                return column, None
            if "birth" in column.phrase:
                return column, ("youngest", "oldest")[side]
            return column, self.phraser.pick(phrases.DATE_SUPERLATIVES[side])
        head = comparison_head(self.table, column)
        return column, self.phraser.pick(phrases.COMPARISONS[head][2 + side]) if head else None

    def _measure(self, column: Column, direction: str) -> str:
        if column.kind in ("date", "year"):
            return self.rng.choice(("latest", "most recent") if direction == "DESC" else ("earliest", "earliest"))
        if column.phrase.endswith("s") and self.rng.random() < 0.6:
            return self.rng.choice(("most", "most") if direction == "DESC" else ("fewest", "least"))
        return self._most(direction)

    def superlative(self) -> Pair | None:
        """The one row with the most or least of something."""
        direction = self._direction()
        ranked = self._ranked(direction)
        if ranked is None:
            return None
        column, adjective = ranked
        table, label = self.table, self.table.label
        order = f" ORDER BY {column.sql}{' DESC' if direction == 'DESC' else ''} LIMIT 1"
        slots = {"one": table.noun, "l": label.phrase, "c": self.phraser.name(column)}
        if adjective and self.rng.random() < 0.6:
            sql = f"SELECT {label.sql} FROM {table.sql}{order}"
            person = label.kind == "person" and self.rng.random() < 0.35
            intent = "who_adjective" if person else "super_one_adjective"
            return self.say(intent, sql, "superlative", adj=adjective, **slots)
        slots["most"] = self._measure(column, direction)
        if self.rng.random() < 0.3:
            np = self.conditions.with_condition(table)
            sql = f"SELECT {label.sql} FROM {table.sql}{np.where()}{order}"
            return self.say("super_filtered", sql, "superlative", np=np.text, **slots)
        alone = sum(c.phrase == column.phrase for other in self.schema.tables for c in other.columns) == 1
        person = label.kind == "person" and alone and self.rng.random() < 0.4
        intent = "who_super" if person else "super_one"
        return self.say(intent, f"SELECT {label.sql} FROM {table.sql}{order}", "superlative", **slots)

    def superlative_value(self) -> Pair | None:
        """Another column of that one row."""
        direction = self._direction()
        ranked = self._ranked(direction)
        others = [c for c in self.table.columns if c.kind not in ("key", "ref")]
        if ranked is None or len(others) < 2:
            return None
        column = ranked[0]
        shown = self.rng.choice([c for c in others if c is not column])
        sql = f"SELECT {shown.sql} FROM {self.table.sql} ORDER BY {column.sql}"
        sql += f"{' DESC' if direction == 'DESC' else ''} LIMIT 1"
        most = self._measure(column, direction)
        return self.say("super_value", sql, "superlative", d=shown.phrase, one=self.table.noun, most=most,
                        c=self.phraser.name(column))  # fmt: skip

    def top_n(self) -> Pair | None:
        """The first few rows in some order."""
        direction = self._direction()
        ranked = self._ranked(direction)
        if ranked is None:
            return None
        column, adjective = ranked
        table = self.table
        number = self.rng.choice((2, 3, 3, 4, 5, 5, 6, 7, 8, 10, 10, 15, 20))
        np = self.conditions.noun_phrase(table, (75, 22, 3))
        sql = f"SELECT {table.label.sql} FROM {table.sql}{np.where()} ORDER BY {column.sql}"
        sql += f"{' DESC' if direction == 'DESC' else ''} LIMIT {number}"
        words_for = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 10: "ten"}
        said = words_for[number] if number in words_for and self.rng.random() < 0.35 else str(number)
        slots = {"n": said, "np": np.text, "c": self.phraser.name(column)}
        if adjective and self.rng.random() < 0.55:
            return self.say("top_n_adjective", sql, "limit", adj=adjective, **slots)
        if direction == "DESC" and self.rng.random() < 0.4:
            return self.say("top_by", sql, "limit", **slots)
        return self.say("top_n", sql, "limit", most=self._measure(column, direction), **slots)

    def group_count(self) -> Pair | None:
        """Rows counted by a column."""
        columns = self._groupable(self.table)
        if not columns:
            return None
        column = columns[0]
        np = self.conditions.noun_phrase(self.table, (70, 25, 5), columns[0])
        sql = f"SELECT {column.sql}, COUNT(*) FROM {self.table.sql}{np.where()} GROUP BY {column.sql}"
        return self.say("group_count", sql, "group", np=np.text, c=self.phraser.name(column))

    def _aggregate_of(self, table: Table) -> tuple[str, Column] | None:
        columns = self._columns_of(table, "int", "real")
        return (self.rng.choice(("AVG", "AVG", "SUM", "SUM", "MAX", "MIN")), columns[0]) if columns else None

    def group_aggregate(self) -> Pair | None:
        """A number aggregated by a column."""
        columns, aggregate = self._groupable(self.table), self._aggregate_of(self.table)
        if not columns or aggregate is None:
            return None
        column, (function, number) = columns[0], aggregate
        np = self.conditions.noun_phrase(self.table, (75, 22, 3), column)
        sql = f"SELECT {column.sql}, {function}({number.sql}) FROM {self.table.sql}{np.where()} GROUP BY {column.sql}"
        f = self.phraser.pick(phrases.AGGREGATES[function])
        return self.say("group_agg", sql, "group", np=np.text, c=column.phrase, d=self.phraser.name(number), f=f)

    def _more_than(self, number: float) -> tuple[str, str]:
        """(sign and number in SQL, the same in English)."""
        sign = self.rng.choices(list(phrases.MORE_THAN), (40, 20, 20, 10, 10))[0]
        return f"{sign} {number}", self.phraser.pick(phrases.MORE_THAN[sign]).format(n=number)

    def having_count(self) -> Pair | None:
        """Groups of more than so many rows."""
        columns = self._groupable(self.table)
        if not columns:
            return None
        column = columns[0]
        np = self.conditions.noun_phrase(self.table, (85, 13, 2), column)
        bound, said = self._more_than(self.rng.randint(1, 12))
        sql = f"SELECT {column.sql} FROM {self.table.sql}{np.where()} GROUP BY {column.sql} HAVING COUNT(*) {bound}"
        return self.say("having_count", sql, "having", np=np.text, cs=words.plural(column.phrase), k=said)

    def having_aggregate(self) -> Pair | None:
        """Groups whose aggregate is above or below a number."""
        columns, aggregate = self._groupable(self.table), self._aggregate_of(self.table)
        if not columns or aggregate is None:
            return None
        column, (function, number) = columns[0], aggregate
        values = [row[number.name] for row in self.table.rows if row[number.name] is not None]
        if not values:
            return None
        value = int(sum(values) / len(values))  # type: ignore[arg-type]
        value = round(value, -(len(str(value)) - 2)) if value > 99 else value
        sign, said = self.rng.choice(((">", "above"), (">", "over"), (">", "more than"), (">", "greater than"),
                                      ("<", "below"), ("<", "under"), ("<", "less than")))  # fmt: skip
        sql = f"SELECT {column.sql} FROM {self.table.sql} GROUP BY {column.sql}"
        sql += f" HAVING {function}({number.sql}) {sign} {value}"
        f = self.phraser.pick(phrases.AGGREGATES[function])
        return self.say("having_agg", sql, "having", np=words.plural(self.table.noun), cs=words.plural(column.phrase),
                        a_f=words.article(f), f=f, d=number.phrase, k=f"{said} {value}")  # fmt: skip

    def group_superlative(self) -> Pair | None:
        """The group with the most rows, or the highest aggregate."""
        columns, aggregate = self._groupable(self.table), self._aggregate_of(self.table)
        if not columns:
            return None
        column, direction = columns[0], self._direction()
        tail = f"{' DESC' if direction == 'DESC' else ''} LIMIT 1"
        if aggregate is not None and self.rng.random() < 0.4:
            function, number = aggregate
            sql = f"SELECT {column.sql} FROM {self.table.sql} GROUP BY {column.sql}"
            sql += f" ORDER BY {function}({number.sql}){tail}"
            f = self.phraser.pick(phrases.AGGREGATES[function][:2] if function in ("AVG", "SUM") else ("maximum",))
            if function == "MIN":
                f = "minimum"
            return self.say("group_super_agg", sql, "group superlative", np=words.plural(self.table.noun),
                            c=column.phrase, d=number.phrase, f=f, most=self._most(direction))  # fmt: skip
        np = self.conditions.noun_phrase(self.table, (85, 13, 2), column)
        sql = f"SELECT {column.sql} FROM {self.table.sql}{np.where()} GROUP BY {column.sql} ORDER BY COUNT(*){tail}"
        most = self.phraser.pick(phrases.MOST_COUNT[direction])
        return self.say("group_super", sql, "group superlative", np=np.text, c=column.phrase, most=most)

    def group_period(self) -> Pair | None:
        """Rows counted by the year or month of a date."""
        columns = self._columns_of(self.table, "date")
        if not columns:
            return None
        unit, mask = self.rng.choice((("year", "%Y"), ("month", "%Y-%m")))
        call = f"strftime('{mask}', {columns[0].sql})"
        np = self.conditions.noun_phrase(self.table, (85, 15, 0))
        sql = f"SELECT {call}, COUNT(*) FROM {self.table.sql}{np.where()} GROUP BY {call}"
        return self.say("group_period", sql, "group", np=np.text, u=unit, c=columns[0].phrase)
