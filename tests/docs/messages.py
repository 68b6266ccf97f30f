"""Every message that the package can show a user, read from its source: `BLANK` stands for what varies.

Messages are what exceptions are made with (of functions that make one: what these are called with), warnings and errors
that are logged, and what the installation prints. Text that a variable of the same function holds is followed.
"""

import ast
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLANK = "\0"
# What takes a message, besides what ends in "Error": `fail_all` and `give_up` fail those who wait with it, and `Health`
# is what /health says.
EXCEPTIONS = {"EngineOverloaded", "EngineUnavailable", "RequestFailed", "CoreDied", "HTTPException", "Unenforceable"}
EXCEPTIONS |= {"EngineAsleep", "EngineBusy", "fail_all", "give_up", "Health"}
OUR_BUGS = {"AssertionError", "NotImplementedError"}
# Runs beside another engine, in its environment.
ELSEWHERE = ROOT / "lightvllm" / "bench" / "compare" / "drivers"

_NAME = re.compile("\1(\\w+)\1")  # a variable within a template, before it becomes a blank
_LOG_FIELD = re.compile(r"%[-.\d]*[a-z]")


@dataclass(frozen=True)
class Message:
    """A message and where it is made."""

    text: str
    place: str


@dataclass(frozen=True)
class Maker:
    """A function that returns an exception: the message, with `_NAME` for its parameters."""

    parameters: list[str]
    template: str

    def messages(self, call: ast.Call, names: dict[str, list[str]]) -> Iterator[str]:
        """What a call of it says."""
        given = dict(zip(self.parameters, call.args, strict=False)) | {word.arg: word.value for word in call.keywords}
        used = [name for name in _NAME.findall(self.template) if name in given]
        for texts in itertools.product(*(templates(given[name], names) or [BLANK] for name in used)):
            text = self.template
            for name, value in zip(used, texts, strict=True):
                text = text.replace(f"\1{name}\1", value)
            yield text


def user_messages() -> list[Message]:
    """All of them, in the order of files and lines."""
    files = [ROOT / "setup.py", *sorted((ROOT / "lightvllm").rglob("*.py"))]
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files if ELSEWHERE not in file.parents}
    makers: dict[str, list[Maker]] = defaultdict(list)
    own: set[ast.Call] = set()  # the calls within makers: their text is known where the makers are called
    for function in _functions(trees.values()):
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Call) and _is_exception(node.value):
                parameters = [arg.arg for arg in function.args.args if arg.arg != "self"]
                made = [text for text in _texts(node.value, _variables(function)) if _mentions(text, parameters)]
                makers[function.name] += [Maker(parameters, text) for text in made]
                own |= {node.value} if made else set()
    found = []
    for file, tree in trees.items():
        for names, node in _statements(tree):
            texts = [] if node in own else _said(node, makers, names)
            if file.name == "setup.py" and isinstance(node, ast.Call) and _name(node.func) == "print":
                texts = _texts(node, names)
            for text in dict.fromkeys(texts):
                message = _NAME.sub(BLANK, text).strip()
                if " " in message and sum(map(str.isalpha, message)) >= 4:  # else its words come from elsewhere
                    found.append(Message(message, f"{file.relative_to(ROOT)}:{node.lineno}"))
    return found


def templates(node: ast.expr, names: dict[str, list[str]]) -> list[str]:
    """What a string expression can be; nothing where that cannot be seen."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        return ["".join(map(_part, node.values))]
    if isinstance(node, ast.IfExp):
        sides = [templates(node.body, names), templates(node.orelse, names)]
        return [text for side in sides for text in side or [BLANK]] if any(sides) else []
    if isinstance(node, ast.BoolOp):
        return [text for value in node.values for text in templates(value, names)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [templates(side, names) or [BLANK] for side in (node.left, node.right)]
        return [left + right for left, right in itertools.product(*sides)]
    if isinstance(node, ast.Name):
        return names.get(node.id, [])
    return []


def _part(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    return f"\1{node.value.id}\1" if isinstance(node.value, ast.Name) else BLANK


def _functions(trees: Iterable[ast.Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def _variables(function: ast.AST) -> dict[str, list[str]]:
    """The texts that variables of a function are given."""
    names: dict[str, list[str]] = defaultdict(list)
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    names[target.id] += templates(node.value, {})
    return names


def _statements(tree: ast.Module) -> Iterator[tuple[dict[str, list[str]], ast.Call | ast.Assign]]:
    """Calls and assignments, each with the variables of the innermost function around it."""
    stack: list[tuple[ast.AST, dict[str, list[str]]]] = [(tree, {})]
    while stack:
        node, names = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = _variables(node)
        if isinstance(node, ast.Call | ast.Assign):
            yield names, node
        stack += [(child, names) for child in ast.iter_child_nodes(node)]


def _said(node: ast.Call | ast.Assign, makers: dict[str, list[Maker]], names: dict[str, list[str]]) -> list[str]:
    if isinstance(node, ast.Assign):
        return [text for target, value in _pairs(node) if _holds_error(target) for text in templates(value, names)]
    name = _name(node.func)
    of = _name(node.func.value) if isinstance(node.func, ast.Attribute) else ""
    if of == "logger" and name in ("warning", "error", "exception", "critical"):
        return [_LOG_FIELD.sub(BLANK, text) for text in templates(node.args[0], names)]
    if (of, name) == ("sys", "exit") or (name == "error" and of in ("self", "parser")):
        return [text for argument in node.args for text in templates(argument, names)]
    if name in makers:
        return [text for maker in makers[name] for text in maker.messages(node, names)]
    return _texts(node, names) if _is_exception(node) else []


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """What is given to what."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=True)
        else:
            yield target, node.value


def _holds_error(target: ast.expr) -> bool:
    """What ends a request, or is put in the place of a message: errors[entry], self.error, error.message."""
    if isinstance(target, ast.Subscript):
        return _name(target.value) == "errors"
    return isinstance(target, ast.Attribute) and target.attr in ("error", "message")


def _texts(call: ast.Call, names: dict[str, list[str]]) -> list[str]:
    return [text for argument in call.args for text in templates(argument, names)]


def _is_exception(call: ast.Call) -> bool:
    name = _name(call.func)
    return (name.endswith("Error") or name in EXCEPTIONS) and name not in OUR_BUGS


def _mentions(text: str, parameters: list[str]) -> bool:
    return not set(_NAME.findall(text)).isdisjoint(parameters)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
