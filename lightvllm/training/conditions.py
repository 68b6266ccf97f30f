"""Noun phrases and the conditions in them: `Fantasy books published after 2010` and the WHERE that says the same."""

import calendar
import random
from dataclasses import dataclass, field

from lightvllm.training import phrases, words
from lightvllm.training.schema import NUMBER_KINDS, TEXT_KINDS, Column, Table


def sql_literal(value: object) -> str:
    """The value as SQL writes it."""
    return (
        "'" + value.replace("'", "''") + "'" if isinstance(value, str) else f"{value:g}" if value == 0 else str(value)
    )


@dataclass
class Condition:
    """`sql` has `{col}` where the column goes; `before` says the text stands before the noun."""

    table: Table
    column: Column
    sql: str
    text: str
    before: bool = False
    joiner: str = " AND "


@dataclass
class NounPhrase:
    """Rows of one table that meet the conditions, in English and in SQL."""

    table: Table
    text: str
    conditions: list[Condition] = field(default_factory=list)
    head: str = ""  # the noun with what stands before it

    def where(self, qualified: bool = False) -> str:
        """` WHERE ...`, or nothing; `qualified` columns carry their table, as a join needs."""
        return where(self.conditions, qualified)


def where(conditions: list[Condition], qualified: bool = False) -> str:
    """The WHERE clause of the conditions in the order they are said."""
    clause = ""
    for condition in conditions:
        column = condition.column.sql
        name = f"{condition.table.sql}.{column}" if qualified else column
        text = condition.sql.replace("{col}", name)
        clause += (condition.joiner if clause else " WHERE ") + text
    return clause


class Phraser:
    """Picks phrasings: those of training, or those held out for the test split where a meaning has any."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out

    def pick(self, options: tuple[str, ...]) -> str:
        """One of the phrasings, `~` taken off."""
        wanted = [option for option in options if option.startswith("~") == self.held_out]
        return self.rng.choice(wanted or options).lstrip("~")

    def name(self, column: Column) -> str:
        """What the question calls the column: its phrase, or now and then its name in the database or a synonym."""
        draw = self.rng.random()
        if draw < 0.05 and not column.name.isupper():
            return column.name
        if draw < 0.10 and column.phrase in phrases.SYNONYMS and not self.held_out:
            return phrases.SYNONYMS[column.phrase]
        return column.phrase

    def value(self, value: object) -> str:
        """The value as the question writes it."""
        if not isinstance(value, str):
            return str(value)
        return self.rng.choices((value, f"'{value}'", f'"{value}"'), (84, 9, 7))[0]


def comparison_head(table: Table, column: Column) -> str | None:
    """The entry of `COMPARISONS` the column's last word names, where no other column of the table claims the same."""

    def head(other: Column) -> str | None:
        if other.kind not in ("int", "real"):
            return None
        return phrases.COMPARISON_HEADS.get(other.phrase.split()[-1])

    mine = head(column)
    return mine if mine is not None and sum(head(other) == mine for other in table.columns) == 1 else None


class Conditions:
    """Makes conditions over the columns of a table, with values its rows hold."""

    def __init__(self, phraser: Phraser) -> None:
        self.phraser = phraser
        self.rng = phraser.rng

    def noun_phrase(
        self, table: Table, counts: tuple[int, int, int] = (35, 45, 20), avoid: Column | None = None
    ) -> NounPhrase:
        """Rows of the table under no, one or two conditions, in these weights; none of them on the column to avoid."""
        wanted = self.rng.choices((0, 1, 2), counts)[0]
        conditions: list[Condition] = []
        columns = [column for column in table.columns if column.kind not in ("key", "ref")]
        columns = [column for column in columns if column is not avoid]
        self.rng.shuffle(columns)
        for column in columns:
            condition = self._condition(table, column) if len(conditions) < wanted else None
            if condition is not None:
                conditions.append(condition)
        return self._say(table, conditions)

    def with_condition(self, table: Table) -> NounPhrase:
        """Rows of the table under one or two conditions, where its columns allow any."""
        return self.noun_phrase(table, (0, 75, 25))

    def _say(self, table: Table, conditions: list[Condition]) -> NounPhrase:
        conditions.sort(key=lambda condition: not condition.before)
        before = [c for c in conditions if c.before]
        after = [c for c in conditions if not c.before]
        many = words.plural(table.noun)
        if len(before) == 2:  # "French red wines" reads worse than "red wines from France"
            return self._say(table, conditions[1:])
        text = f"{before[0].text} {many}" if before else many
        joined = ""
        for condition in after:
            if not joined:
                joined = condition.text
            elif not before and self.rng.random() < 0.25:
                condition.joiner = " OR "
                joined += f" or {condition.text}"
            else:
                joined += f" and {condition.text}"
        return NounPhrase(table, f"{text} {joined}" if joined else text, before + after, text)

    def _condition(self, table: Table, column: Column) -> Condition | None:
        if column.nullable and self.rng.random() < 0.2:
            meaning, sql = self.rng.choice((("null", "{col} IS NULL"), ("null", "{col} IS NULL"),
                                            ("not_null", "{col} IS NOT NULL")))  # fmt: skip
            return self._make(table, column, meaning, sql)
        if column.kind == "flag":
            return self._flag(table, column)
        values = [row[column.name] for row in table.rows if row[column.name] is not None]
        if not values:
            return None
        if column.kind in NUMBER_KINDS:
            return self._number(table, column, values)
        if column.kind == "date":
            return self._date(table, column, [str(value) for value in values])
        assert column.kind in (*TEXT_KINDS, "category"), column.kind
        return self._text(table, column, [str(value) for value in values])

    def _make(self, table: Table, column: Column, meaning: str, sql: str, **slots: str) -> Condition:
        template = self.phraser.pick(phrases.CONDITIONS[meaning])
        name = self.phraser.name(column)
        return Condition(table, column, sql, template.format(c=name, a_c=words.article(name), **slots))

    def _flag(self, table: Table, column: Column) -> Condition:
        truth = self.rng.random() < 0.65
        sql = f"{{col}} = {int(truth)}"
        if truth and self.rng.random() < 0.35 and " " not in column.phrase:
            return Condition(table, column, sql, column.phrase, before=True)
        return self._make(table, column, "flag" if truth else "not_flag", sql)

    def _number(self, table: Table, column: Column, values: list) -> Condition:
        low, high = sorted(self._round(column, self.rng.choice(values)) for _ in range(2))
        value = high if self.rng.random() < 0.5 else low
        draw = self.rng.random()
        if column.kind == "year":
            meaning, sign = self.rng.choice((("after", ">"), ("before", "<"), ("eq_number", "="), ("in_period", "=")))
            if draw < 0.8:
                return self._make(table, column, meaning, f"{{col}} {sign} {value}", v=str(value))
        if draw < 0.14 and low < high:
            return self._make(table, column, "between", f"{{col}} BETWEEN {low} AND {high}", a=str(low), b=str(high))
        if draw < 0.24:
            higher = self.rng.random() < 0.65
            sign, meaning = (">", "above_average") if higher else ("<", "below_average")
            sql = f"{{col}} {sign} (SELECT AVG({column.sql}) FROM {table.sql})"
            return self._make(table, column, meaning, sql)
        if draw < 0.38 and isinstance(value, int):
            return self._make(table, column, "eq_number", f"{{col}} = {value}", v=str(value))
        meaning, sign = self.rng.choices(
            (("gt", ">"), ("lt", "<"), ("ge", ">="), ("le", "<=")), (36, 36, 16, 12)
        )[0]  # fmt: skip
        head = comparison_head(table, column)
        if meaning in ("gt", "lt") and head is not None and self.rng.random() < 0.55:
            template = self.phraser.pick(phrases.COMPARISONS[head][0 if meaning == "gt" else 1])
            return Condition(table, column, f"{{col}} {sign} {value}", template.format(v=value))
        if meaning in ("gt", "lt") and column.phrase.endswith("s") and self.rng.random() < 0.5:
            than = self.phraser.pick(phrases.MORE_THAN[sign]).format(n=value)
            text = f"{self.rng.choice(('with', 'that have', 'having'))} {than} {column.phrase}"
            return Condition(table, column, f"{{col}} {sign} {value}", text)
        return self._make(table, column, meaning, f"{{col}} {sign} {value}", v=str(value))

    def _round(self, column: Column, value: float) -> float:
        """People ask about 50 and 1200, not 1187.43."""
        if column.kind == "year":
            return value
        if column.kind == "real" and column.high <= 15:
            return round(value, 1)
        if self.rng.random() < 0.1:
            return value
        whole = int(value)
        digits = len(str(whole))
        return round(whole, -(digits - 2)) if digits > 2 else whole

    def _date(self, table: Table, column: Column, values: list[str]) -> Condition:
        value = self.rng.choice(values)
        draw = self.rng.random()
        if draw < 0.45:  # the whole year, or a month of it
            period = value[:4] if draw < 0.32 else value[:7]
            said = period if draw < 0.32 else f"{calendar.month_name[int(value[5:7])]} {value[:4]}"
            return self._dated(table, column, "in_period", f"{{col}} LIKE '{period}%'", "in", said)
        if draw < 0.53:
            low, high = sorted((value, self.rng.choice(values)))
            return self._make(table, column, "between", f"{{col}} BETWEEN '{low}' AND '{high}'", a=low, b=high)
        if draw < 0.6:
            return self._dated(table, column, "on", f"{{col}} = '{value}'", "on", value)
        if self.rng.random() < 0.3:
            value = value[:4] + "-01-01"
        meaning, sign, word = self.rng.choice((("after", ">", "after"), ("before", "<", "before"),
                                               ("since", ">=", "since")))  # fmt: skip
        return self._dated(table, column, meaning, f"{{col}} {sign} '{value}'", word, value)

    def _dated(self, table: Table, column: Column, meaning: str, sql: str, preposition: str, value: str) -> Condition:
        verb = column.phrase.split()[0]
        if verb in words.DATE_HEADS and self.rng.random() < 0.5:
            return Condition(table, column, sql, f"{verb} {preposition} {value}")
        if len(table.of_kind("date")) == 1 and not table.of_kind("year") and self.rng.random() < 0.3:
            return Condition(table, column, sql, f"{preposition} {value}")
        return self._make(table, column, meaning, sql, v=value)

    def _text(self, table: Table, column: Column, values: list[str]) -> Condition:
        value = self.rng.choice(values)
        draw = self.rng.random()
        distinct = list(dict.fromkeys(values))
        groupable = column.kind in ("category", "city", "country")
        if groupable and draw < 0.15 and len(distinct) > 2:
            return self._one_of(
                table, column, self.rng.sample(distinct, k=3 if len(distinct) > 3 and draw < 0.05 else 2)
            )
        if draw < 0.22 and groupable:
            return self._make(table, column, "ne", f"{{col}} != {sql_literal(value)}", v=self.phraser.value(value))
        if not groupable and draw < 0.55:
            return self._like(table, column, value)
        sql = f"{{col}} = {sql_literal(value)}"
        if column.kind == "category" and self.rng.random() < 0.45:
            # The schema lists the values of a category, so the question may be careless about case.
            said = value.lower() if self.rng.random() < 0.3 and len(distinct) <= 5 and not column.nullable else value
            return Condition(table, column, sql, said, before=True)
        if column.kind == "category" and self.rng.random() < 0.3:
            return self._make(table, column, "category", sql, v=self.phraser.value(value))
        only_place = sum(other.kind in ("city", "country") for other in table.columns) == 1
        if column.kind in ("city", "country") and only_place and self.rng.random() < 0.6:
            template = self.phraser.pick(phrases.CONDITIONS["place"])
            return Condition(table, column, sql, template.format(v=self.phraser.value(value)))
        return self._make(table, column, "eq", sql, v=self.phraser.value(value))

    def _one_of(self, table: Table, column: Column, values: list[str]) -> Condition:
        literals = ", ".join(sql_literal(value) for value in values)
        slots = {"vs": ", ".join(values[:-1]) + " or " + values[-1], "vs_list": ", ".join(values),
                 "a": values[0], "b": values[-1]}  # fmt: skip
        negative = self.rng.random() < 0.25 and len(values) == 2
        word = "NOT IN" if negative else "IN"
        return self._make(table, column, "not_in" if negative else "in", f"{{col}} {word} ({literals})", **slots)

    def _like(self, table: Table, column: Column, value: str) -> Condition:
        meaning = self.rng.choice(("starts", "starts", "ends", "contains", "contains"))
        part = self.rng.choice(value.split()).replace("'", "")
        if meaning == "contains":
            piece = part if self.rng.random() < 0.6 else part[1 : 1 + self.rng.randint(2, 4)] or part
            pattern = f"%{piece}%"
        elif meaning == "starts":
            piece = value[: self.rng.choice((1, 1, 1, 2, 3))].strip()
            pattern = f"{piece}%"
        else:
            piece = value[-self.rng.choice((1, 1, 2, 3)) :].strip()
            pattern = f"%{piece}"
        said = self.phraser.value(piece)
        if meaning != "contains" and self.rng.random() < 0.15:
            said = f"the letter {said}" if len(piece) == 1 else said
        return self._make(table, column, meaning, f"{{col}} LIKE {sql_literal(pattern)}", v=said)
