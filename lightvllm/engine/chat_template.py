"""Chat templates: the Jinja program a checkpoint ships to turn a list of messages into its prompt.

The names a template may use (filters, functions, blocks, variables) are those that transformers documents under
"chat templating"; tests/engine/test_chat_template.py renders the same chats with both. A template comes with the
checkpoint and is foreign code: it runs in Jinja's immutable sandbox and sees plain JSON values only.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Marks where a message that is to be continued ends. Of the private use area, so no text has it; the space after it
# shows whether the template trims the message.
CONTINUE_MARK = "\uf8ff\uf8fe"
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One compiled chat template.

    Args:
        source: Jinja source.

    Raises:
        ValueError: the source is not valid Jinja.
    """

    def __init__(self, source: str) -> None:
        environment = _environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"chat_template: not valid Jinja, line {error.lineno}: {error.message}") from error
        self._takes_parts = _iterates_over_content(tree)
        # A template that iterates over parts and never asks whether the content is a string would iterate over its
        # characters.
        self._takes_text = not self._takes_parts or any(test.name == "string" for test in tree.find_all(nodes.Test))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a chat; `Tokenizer.apply_chat_template` describes the arguments.

        Raises:
            ValueError: a malformed message, or the template raised an error (its own words are in the message).
        """
        if add_generation_prompt and continue_final_message:
            raise ValueError("continue_final_message=True goes with add_generation_prompt=False, but it is True")
        chat = [self._message(message, f"messages[{i}]") for i, message in enumerate(_nonempty_list(messages))]
        if continue_final_message:
            _mark_end(chat[-1])
        inputs = {
            **_plain(dict(variables or {}), "chat_template_kwargs"),
            "messages": chat,
            "tools": _plain(tools, "tools"),
            "documents": _plain(documents, "documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            prompt = self._template.render(inputs)
        except Exception as error:  # a template is foreign code and may fail in any way
            raise ValueError(f"chat_template: {error}") from error
        return _cut_at_mark(prompt) if continue_final_message else prompt

    def _message(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A copy of the message in the form the template is written for."""
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"{where}: expected a dict with a 'role', got {message!r:.100}")
        # Clients send `"content": null` beside tool calls; templates test for the key, and would write "None".
        fields = {key: _plain(value, f"{where}.{key}") for key, value in message.items() if value is not None}
        if "content" in fields:
            # Tool results are written as they are, even by templates that take the parts of a user's message.
            as_text = fields["role"] == "tool" or not self._takes_parts
            fields["content"] = self._content(fields["content"], as_text, f"{where}.content")
        for call in fields.get("tool_calls") or []:
            _parse_arguments(call)
        reasoning = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
        if reasoning is not None:  # one thing under three names; templates read one of the first two
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        return fields

    def _content(self, content: Any, as_text: bool, where: str) -> Any:
        if isinstance(content, list):
            texts = [_part_text(part, f"{where}[{i}]") for i, part in enumerate(content)]
            return "\n".join(texts) if as_text else [{"type": "text", "text": text} for text in texts]
        if not isinstance(content, str):
            raise ValueError(f"{where}: expected a string or a list of text parts, got {content!r:.100}")
        return content if as_text or self._takes_text else [{"type": "text", "text": content}]


# ---- messages


def _nonempty_list(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"messages: expected a non-empty list of dicts, got {messages!r:.100}")
    return messages


def _plain(value: Any, where: str) -> Any:
    """A copy of a JSON value in plain Python types: an object with methods would be a way out of the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # e.g. a member of a string enum
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(f"{where}: expected a JSON value, got {type(value).__name__} {value!r:.100}")


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(f'{where}: expected {{"type": "text", "text": ...}}, the only kind supported, got {part!r:.100}')


def _parse_arguments(call: Any) -> None:
    """Arguments of a tool call as a dict, which templates are written for; the OpenAI format has them as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None  # the model's own malformed call, now part of the history: show it as it was
        arguments = parsed if isinstance(parsed, dict) else arguments
    function["arguments"] = arguments


def _mark_end(message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = f"{content}{CONTINUE_MARK} "
    elif content:
        content[-1]["text"] += f"{CONTINUE_MARK} "
    else:
        raise ValueError("continue_final_message: the final message has no content to continue")


def _cut_at_mark(prompt: str) -> str:
    before, mark, after = prompt.rpartition(CONTINUE_MARK)
    if not mark:
        raise ValueError("continue_final_message: the chat template does not write the final message's content")
    # Where the mark's own space is gone the template trims messages, and would have trimmed this one.
    return before if after.startswith(" ") else before.rstrip()


# ---- Jinja


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(lineno)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the model saw it in training; Jinja's own filter escapes <, >, & and ' for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether the template loops over a message's content, that is, was written for a list of parts.

    Follows the content through assignments and macro arguments, without regard to scope: a template that calls
    something else "content" and loops over it would be a surprise.
    """
    aliases: set[str] = set()

    def is_content(node: nodes.Node | None) -> bool:
        if isinstance(node, nodes.Name):
            return node.name in aliases
        if isinstance(node, nodes.Getattr):
            return node.attr == "content"
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            return bool(node.arg.value == "content")
        if isinstance(node, nodes.CondExpr):
            return is_content(node.expr1) or is_content(node.expr2)
        return isinstance(node, (nodes.Getitem, nodes.Filter)) and is_content(node.node)

    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    known = -1
    while known < len(aliases):  # an alias found in one round may lead to others in the next
        known = len(aliases)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and is_content(assign.node):
                aliases.add(assign.target.name)
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in macros:
                arguments = zip(macros[call.node.name].args, call.args, strict=False)
                aliases.update(name.name for name, value in arguments if is_content(value))
    return any(is_content(loop.iter) for loop in tree.find_all(nodes.For))
