"""Questions over several tables: joins along foreign keys, rows with and without children, link tables."""

from dataclasses import dataclass

from lightvllm.training import phrases, words
from lightvllm.training.conditions import NounPhrase, sql_literal, where
from lightvllm.training.questions import Maker, Pair, SingleTable
from lightvllm.training.schema import Column, Table


@dataclass
class Link:
    """A foreign key: `child.ref` points to `parent`'s key."""

    child: Table
    ref: Column
    parent: Table

    @property
    def role(self) -> str:
        """What the child calls the parent."""
        return self.ref.phrase

    def join(self) -> str:
        """` JOIN parent ON child.ref = parent.key`."""
        parent = self.parent
        return f" JOIN {parent.sql} ON {self.child.sql}.{self.ref.sql} = {parent.sql}.{parent.key.sql}"


def column_of(table: Table, column: Column) -> str:
    """`table.column`."""
    return f"{table.sql}.{column.sql}"


class Joined(SingleTable):
    """Questions that need more than one table."""

    link: Link

    def links(self) -> list[Link]:
        """Every foreign key of the schema."""
        return [
            Link(table, column, self.schema.table(column.target))
            for table in self.schema.tables
            for column in table.of_kind("ref")
        ]

    def joined_makers(self) -> list[tuple[Maker, float]]:
        """Every kind of question over `self.link` with how often it is asked."""
        return [
            (self.join_columns, 8), (self.join_filter, 11), (self.join_labelled, 9), (self.has_child, 4),
            (self.no_child, 4), (self.join_group_count, 6), (self.join_group_aggregate, 5), (self.join_superlative, 6),
            (self.join_having, 4), (self.through, 5), (self.two_joins, 4), (self.parent_by_child, 4),
            (self.parent_of, 5),
        ]  # fmt: skip

    def _one_ref(self) -> bool:
        """Whether the parent is the only way from the child to that table: "its team" must not mean two."""
        return sum(ref.target == self.link.parent.noun for ref in self.link.child.of_kind("ref")) == 1

    def _from(self) -> str:
        return f" FROM {self.link.child.sql}{self.link.join()}"

    def join_columns(self) -> Pair | None:
        """Columns of the child next to one of the parent."""
        link = self.link
        others = [c for c in link.parent.columns if c.kind not in ("key", "ref")]
        if not others:
            return None
        shown = self._shown(link.child, most=2)
        other = (
            link.parent.label if self.rng.random() < 0.65 and link.parent.label in others else self.rng.choice(others)
        )
        np = self.conditions.noun_phrase(link.child, (65, 33, 2))
        listed = ", ".join([column_of(link.child, c) for c in shown] + [column_of(link.parent, other)])
        sql = f"SELECT {listed}{self._from()}{np.where(qualified=True)}"
        intent = "join_columns_each" if not np.conditions and self.rng.random() < 0.35 else "join_columns"
        return self.say(intent, sql, "join", np=np.text, cols=self._listed(shown), c=self.phraser.name(other),
                        one=link.child.noun, r=link.role)  # fmt: skip

    def _parents(self, np: NounPhrase) -> str:
        """The parents, called by their role where the child gives them one."""
        if self.link.role == self.link.parent.noun:
            return np.text
        return np.text.replace(words.plural(self.link.parent.noun), words.plural(self.link.role), 1)

    def _ask_filtered(self, np_text: str, condition: str, joins: str, own: list, kind: str) -> Pair | None:
        """Count, list, name or aggregate the child rows a condition over other tables leaves."""
        child = self.link.child
        text = f"{np_text} {condition}"
        tail = f"{joins}{where(own, qualified=True)}"
        draw = self.rng.random()
        numbers = self._columns_of(child, "int", "real")
        if draw < 0.3:
            return self.say("count", f"SELECT COUNT(*){tail}", kind, np=text)
        if draw < 0.45 and numbers:
            function = self.rng.choice(("AVG", "SUM", "SUM", "MAX", "MIN"))
            sql = f"SELECT {function}({column_of(child, numbers[0])}){tail}"
            return self.say(function.lower(), sql, kind, np=text, c=self.phraser.name(numbers[0]))
        if draw < 0.6:
            return self.say("which", f"SELECT {column_of(child, child.label)}{tail}", kind, np=text)
        shown = self._shown(child, most=2)
        sql = f"SELECT {', '.join(column_of(child, c) for c in shown)}{tail}"
        return self.say("columns", sql, kind, np=text, cols=self._listed(shown))

    def join_filter(self) -> Pair | None:
        """Children of the parents that meet a condition."""
        link = self.link
        parents = self.conditions.with_condition(link.parent)
        if not parents.conditions or not self._one_ref() or " OR " in parents.where() or "(SELECT" in parents.where():
            return None
        children = self.conditions.noun_phrase(link.child, (80, 20, 0))
        if len(children.conditions) > 0 and not children.conditions[0].before:
            children = NounPhrase(link.child, words.plural(link.child.noun))
        first = parents.conditions[0]
        if len(parents.conditions) == 1 and not first.before and self.rng.random() < 0.2 and first.text.startswith(
            ("from", "in ", "based")
        ):  # fmt: skip
            condition = f"whose {link.role} is {first.text}"
        else:
            condition = f"{self.phraser.pick(phrases.CONNECTORS)} {self._parents(parents)}"
        own = children.conditions + parents.conditions
        return self._ask_filtered(children.text, condition, self._from(), own, "join filter")

    def _name_of(self, table: Table) -> str | None:
        label = table.label
        values = [row[label.name] for row in table.rows if isinstance(row[label.name], str)]
        return str(self.rng.choice(values)) if values and label.kind != "key" else None

    def join_labelled(self) -> Pair | None:
        """Children of the one parent of that name."""
        link = self.link
        value = self._name_of(link.parent)
        if value is None or not self._one_ref():
            return None
        template = self.phraser.pick(phrases.LABELLED)
        refs = [
            c for c in link.child.of_kind("ref") if self.schema.table(c.target).label.kind == link.parent.label.kind
        ]
        if "{r}" not in template and len(refs) > 1:  # "orders of Ann" says nothing where two tables hold people
            template = "of the {r} {v}"
        children = NounPhrase(link.child, words.plural(link.child.noun))
        condition = template.format(r=link.role, v=self.phraser.value(value))
        joins = f"{self._from()} WHERE {column_of(link.parent, link.parent.label)} = {sql_literal(value)}"
        return self._ask_filtered(children.text, condition, joins, [], "join filter")

    def parent_of(self) -> Pair | None:
        """The parent, or a column of it, of the one child of that name."""
        link = self.link
        value = self._name_of(link.child)
        others = [c for c in link.parent.columns if c.kind not in ("key", "ref")]
        if value is None or not others:
            return None
        label = link.parent.label
        named = label.kind != "key" and self.rng.random() < 0.6
        column = label if named else self.rng.choice(others)
        person = named and label.kind == "person" and self.rng.random() < 0.5
        intent = "parent_of_person" if person else "parent_of" if named else "parent_column"
        sql = f"SELECT {column_of(link.parent, column)}{self._from()}"
        sql += f" WHERE {column_of(link.child, link.child.label)} = {sql_literal(value)}"
        return self.say(intent, sql, "join filter", r=link.role, one=link.child.noun, v=self.phraser.value(value),
                        c=self.phraser.name(column))  # fmt: skip

    def _children(self, np: NounPhrase, link: Link) -> str:
        one = np.text.replace(words.plural(link.child.noun), link.child.noun, 1)
        options = (np.text, np.text, f"at least one {one}") if one != np.text else (np.text,)
        return self.rng.choice(options)

    def _by_children(self, children: NounPhrase, parents: NounPhrase, intent: str, word: str, kind: str) -> Pair:
        link = self.link
        inner = f"(SELECT {link.ref.sql} FROM {link.child.sql}{children.where()})"
        shown = link.parent.label.sql
        clause = parents.where()
        clause += f"{' AND' if clause else ' WHERE'} {link.parent.key.sql} {word} {inner}"
        sql = f"SELECT {shown} FROM {link.parent.sql}{clause}"
        said = self._children(children, link) if intent == "has_child" else children.text
        return self.say(intent, sql, kind, np=parents.text, ch=said)

    def has_child(self) -> Pair | None:
        """Parents with at least one child."""
        children = NounPhrase(self.link.child, words.plural(self.link.child.noun))
        parents = self.conditions.noun_phrase(self.link.parent, (85, 15, 0))
        if not self._one_ref() or (parents.conditions and not parents.conditions[0].before):
            return None
        return self._by_children(children, parents, "has_child", "IN", "nested")

    def parent_by_child(self) -> Pair | None:
        """Parents with a child that meets a condition."""
        children = self.conditions.with_condition(self.link.child)
        if not children.conditions or not self._one_ref() or "(SELECT" in children.where():
            return None
        parents = NounPhrase(self.link.parent, words.plural(self.link.parent.noun))
        return self._by_children(children, parents, "has_child", "IN", "nested")

    def no_child(self) -> Pair | None:
        """Parents without children."""
        children = self.conditions.noun_phrase(self.link.child, (75, 25, 0))
        parents = self.conditions.noun_phrase(self.link.parent, (85, 15, 0))
        if not self._one_ref() or (parents.conditions and not parents.conditions[0].before):
            return None
        if "(SELECT" in children.where():
            return None
        return self._by_children(children, parents, "no_child", "NOT IN", "nested")

    def _grouped(self) -> str:
        """Groups by the parent's key: two customers of one name are two customers."""
        return f" GROUP BY {column_of(self.link.parent, self.link.parent.key)}"

    def join_group_count(self) -> Pair | None:
        """Children counted by parent."""
        link = self.link
        if not self._one_ref():
            return None
        np = self.conditions.noun_phrase(link.child, (80, 20, 0))
        label = link.parent.label
        sql = (
            f"SELECT {column_of(link.parent, label)}, COUNT(*){self._from()}{np.where(qualified=True)}{self._grouped()}"
        )
        return self.say("join_group_count", sql, "join group", np=np.text, r=link.role, c=label.phrase)

    def join_group_aggregate(self) -> Pair | None:
        """A number of the children aggregated by parent."""
        link, aggregate = self.link, self._aggregate_of(self.link.child)
        if aggregate is None or not self._one_ref():
            return None
        function, number = aggregate
        np = self.conditions.noun_phrase(link.child, (80, 20, 0))
        sql = f"SELECT {column_of(link.parent, link.parent.label)}, {function}({column_of(link.child, number)})"
        sql += f"{self._from()}{np.where(qualified=True)}{self._grouped()}"
        f = self.phraser.pick(phrases.AGGREGATES[function])
        return self.say("join_group_agg", sql, "join group", np=np.text, r=link.role, d=self.phraser.name(number), f=f)

    def join_superlative(self) -> Pair | None:
        """The parent with the most children, or the highest aggregate over them."""
        link, aggregate = self.link, self._aggregate_of(self.link.child)
        if not self._one_ref():
            return None
        direction = self._direction()
        tail = f"{' DESC' if direction == 'DESC' else ''} LIMIT 1"
        head = f"SELECT {column_of(link.parent, link.parent.label)}{self._from()}"
        if aggregate is not None and self.rng.random() < 0.4:
            function, number = aggregate
            f = {"AVG": "average", "SUM": "total", "MAX": "maximum", "MIN": "minimum"}[function]
            sql = f"{head}{self._grouped()} ORDER BY {function}({column_of(link.child, number)}){tail}"
            return self.say("join_super_agg", sql, "join superlative", np=words.plural(link.child.noun), r=link.role,
                            d=self.phraser.name(number), f=f, most=self._most(direction))  # fmt: skip
        np = self.conditions.noun_phrase(link.child, (85, 15, 0))
        sql = f"{head}{np.where(qualified=True)}{self._grouped()} ORDER BY COUNT(*){tail}"
        most = self.phraser.pick(phrases.MOST_COUNT[direction])
        return self.say("join_super", sql, "join superlative", np=np.text, r=link.role, c=link.parent.label.phrase,
                        most=most)  # fmt: skip

    def join_having(self) -> Pair | None:
        """Parents with more than so many children."""
        link = self.link
        if not self._one_ref():
            return None
        np = self.conditions.noun_phrase(link.child, (85, 15, 0))
        bound, said = self._more_than(self.rng.randint(1, 6))
        sql = f"SELECT {column_of(link.parent, link.parent.label)}{self._from()}{np.where(qualified=True)}"
        sql += f"{self._grouped()} HAVING COUNT(*) {bound}"
        return self.say("join_having", sql, "join having", np=np.text, rs=words.plural(link.role), k=said)

    def through(self) -> Pair | None:
        """Rows on one side of a link table by the name of the row on the other: students of a course."""
        link = self.link
        others = [Link(link.child, ref, self.schema.table(ref.target)) for ref in link.child.of_kind("ref")]
        others = [other for other in others if other.parent is not link.parent]
        value = self._name_of(link.parent)
        if not others or value is None or not self._one_ref():
            return None
        other = self.rng.choice(others)
        if sum(ref.target == other.parent.noun for ref in link.child.of_kind("ref")) > 1:
            return None
        shown = column_of(other.parent, other.parent.label)
        sql = f"SELECT {shown} FROM {link.child.sql}{other.join()}{link.join()}"
        sql += f" WHERE {column_of(link.parent, link.parent.label)} = {sql_literal(value)}"
        np = words.plural(other.parent.noun)
        return self.say("through", sql, "two joins", np=np, r=link.role, v=self.phraser.value(value),
                        one_child=words.article(link.child.noun))  # fmt: skip

    def two_joins(self) -> Pair | None:
        """Children by a condition on their grandparent: loans of books by one author."""
        link = self.link
        ups = [Link(link.parent, ref, self.schema.table(ref.target)) for ref in link.parent.of_kind("ref")]
        if not ups or not self._one_ref():
            return None
        up = self.rng.choice(ups)
        value = self._name_of(up.parent)
        if value is None or up.parent is link.child:
            return None
        many = words.plural(link.role)
        template = self.phraser.pick(tuple(option for option in phrases.LABELLED if "{r}" in option))
        condition = (
            f"{self.phraser.pick(phrases.CONNECTORS)} {many} {template.format(r=up.role, v=self.phraser.value(value))}"
        )
        joins = f"{self._from()}{up.join()} WHERE {column_of(up.parent, up.parent.label)} = {sql_literal(value)}"
        return self._ask_filtered(words.plural(link.child.noun), condition, joins, [], "two joins")
