"""Chat templates: rendered as transformers renders them, for templates written in the styles of known models."""

import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lightvllm.engine.chat_template import ChatTemplate
from lightvllm.engine.tokenizer import Tokenizer
from tests.engine.tokenizer_folders import byte_fallback, byte_level, save

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last_user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}
        {%- continue %}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content and loop.index0 > ns.last_user %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n' }}
        {%- endif %}
        {{- message.content }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{% if tools is not none %}
{{ tools | tojson(indent=4) }}
{% endif %}
{{- system_message }}<|eot_id|>
{%- for message in messages %}
    {%- generation %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INSTRUCTIONS = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}
{% endfor %}
"""

PARTS_OR_TEXT = """\
{%- macro text_of(value) %}
    {%- if value is string %}{{- value }}
    {%- else %}
        {%- for item in value %}{%- if item.type == 'text' %}[{{- item.text }}]{%- endif %}{%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {{- '<' + message.role + '>' }}{{- text_of(message.content) }}
    {{- '\\n' }}
{%- endfor %}
{%- for document in documents %}{{ document.title }}: {{ document.text }}{% endfor %}
"""

PARTS_ONLY = """\
{% for message in messages %}{% set content = message['content'] %}
{{ message['role'] }}:{% for part in content %} {{ part['text'] }}{% endfor %}

{% endfor %}
"""

TEMPLATES = {
    "chatml": CHATML_WITH_TOOLS,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "parts or text": PARTS_OR_TEXT,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What's the <weather> in a città & more?",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
USER = {"role": "user", "content": "How is the <weather> in Zürich & 東京? \n"}
ASSISTANT = {"role": "assistant", "content": ' It\'s "fine".  '}
TOOL_TURNS = [
    USER,
    {
        "role": "assistant",
        "content": "",
        "reasoning": "\nThey want the weather.\n",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"place": "Zürich <&>"}}}],
    },
    {"role": "tool", "content": "18 °C"},
    {"role": "tool", "content": "rain"},
]
CHATS: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "one turn": ("chatml", [USER], {}),
    "system": ("chatml", [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER], {}),
    "no generation prompt": ("chatml", [USER, ASSISTANT], {"add_generation_prompt": False}),
    "a variable": ("chatml", [USER], {"enable_thinking": False}),
    "tools": ("chatml", [{"role": "system", "content": "Be brief."}, *TOOL_TURNS], {"tools": TOOLS}),
    "content is None": ("chatml", [USER, {**TOOL_TURNS[1], "content": None, "name": None}], {}),
    "reasoning before the last user": ("chatml", [*TOOL_TURNS, USER], {}),
    "continued": ("chatml", [USER, ASSISTANT], {"continue_final_message": True, "add_generation_prompt": False}),
    "headers": ("headers", [USER, ASSISTANT, USER], {"date_string": "1 Jan 2025"}),
    "headers, system and tools": ("headers", [{"role": "system", "content": " Be brief. "}, USER], {"tools": TOOLS}),
    "headers, continued": (
        "headers",
        [USER, ASSISTANT],
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "instructions": ("instructions", [USER, ASSISTANT, USER], {}),
    "instructions, continued": (
        "instructions",
        [USER, ASSISTANT],
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "a special token overridden": ("instructions", [USER, ASSISTANT], {"eos_token": "<end>"}),
    "text": ("parts or text", [USER, ASSISTANT], {"documents": [{"title": "a", "text": "b"}]}),
    "parts": (
        "parts or text",
        [{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}],
        {"documents": []},
    ),
    "parts, continued": (
        "parts or text",
        [{"role": "assistant", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b "}]}],
        {"documents": [], "continue_final_message": True, "add_generation_prompt": False},
    ),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Any]]:
    pairs = {}
    for name, template in TEMPLATES.items():
        config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
        folder = save(tmp_path_factory.mktemp("chat"), byte_fallback(), config)
        pairs[name] = (Tokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return pairs


@pytest.mark.parametrize("name", CHATS)
def test_renders_as_transformers(pairs: dict[str, tuple[Tokenizer, Any]], name: str) -> None:
    template, messages, options = CHATS[name]
    tokenizer, oracle = pairs[template]
    expected = oracle.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})
    assert tokenizer.apply_chat_template(messages, **options) == expected
    assert messages == CHATS[name][1], "the caller's messages were changed"


def test_continued_message_ends_the_prompt(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    def prompt(template: str, text: str) -> str:
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        return pairs[template][0].apply_chat_template(
            messages, add_generation_prompt=False, continue_final_message=True
        )

    assert prompt("chatml", "SELECT ") == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nSELECT "
    assert prompt("headers", " SELECT ").endswith("<|end_header_id|>\n\nSELECT")  # the template trims
    assert prompt("instructions", "q") == "<s>[INST] q [/INST]\nq"


def test_tool_call_arguments_as_json_text(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer, _ = pairs["chatml"]

    def prompt(arguments: Any) -> str:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        return tokenizer.apply_chat_template([{"role": "assistant", "content": "", "tool_calls": [call]}])

    as_dict = prompt({"place": "Zürich"})
    assert '"arguments": {"place": "Zürich"}}' in as_dict
    assert prompt('{"place":"Z\\u00fcrich"}') == as_dict
    assert '"arguments": {}}' in prompt("") == prompt(None)
    assert '"arguments": "{broken"}' in prompt("{broken")  # what the model wrote, not an error for ever after
    assert "[[[[" in prompt("[" * 100_000)


def test_content_parts_for_a_template_written_for_text(pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer, _ = pairs["instructions"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert tokenizer.apply_chat_template([{"role": "user", "content": parts}]) == "<s>[INST] a\nb [/INST]\n"


def test_text_for_a_template_written_for_parts() -> None:
    template = ChatTemplate(PARTS_ONLY)
    assert template.render([{"role": "user", "content": "hello"}]) == "user: hello\n"
    parts = [{"type": "text", "text": "a"}, "b"]
    assert template.render([{"role": "user", "content": parts}]) == "user: a b\n"
    # Templates write tool results as text, whatever they do with the rest.
    result = ChatTemplate("{{ messages[0].content }}" + PARTS_ONLY).render([{"role": "tool", "content": parts}])
    assert result.startswith("a\nb")


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        (CHATML_WITH_TOOLS, False),
        (HEADERS, False),
        (INSTRUCTIONS, False),
        (PARTS_OR_TEXT, True),
        (PARTS_ONLY, True),
        ("{% for m in messages %}{% for p in m.content | list %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for line in m.content.split('x') %}{{ line }}{% endfor %}{% endfor %}", False),
        ("{% set c = messages[0]['content'] %}{% set d = c[1:] %}{% for p in d %}{{ p }}{% endfor %}", True),
    ],
)
def test_content_format_detection(source: str, takes_parts: bool) -> None:
    seen = ChatTemplate("{{ messages[0].content is string }}" + source)
    parts = [{"type": "text", "text": "a"}]
    prompt = seen.render([{"role": "user", "content": parts}], documents=[], variables={"bos_token": ""})
    assert prompt.startswith("False" if takes_parts else "True")


def test_named_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
    tokenizer = Tokenizer.from_pretrained(save(tmp_path, byte_level(), {"chat_template": named}))
    assert tokenizer.apply_chat_template([USER]) == "plain"
    assert tokenizer.apply_chat_template([USER], tools=TOOLS) == "with tools"
    assert tokenizer.apply_chat_template([USER], chat_template="tool_use") == "with tools"
    assert tokenizer.apply_chat_template([USER], chat_template="{{ messages[0].role }}!") == "user!"


def test_template_files_come_before_the_config(tmp_path: Path) -> None:
    files = {"chat_template__jinja": "file {{ eos_token }}", "additional_chat_templates/tool_use__jinja": "tools"}
    save(tmp_path, byte_level(), {"chat_template": "config", "eos_token": "<|im_end|>"}, **files)
    tokenizer, oracle = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.apply_chat_template([USER]) == "file <|im_end|>"
    assert oracle.apply_chat_template([USER], tokenize=False) == "file <|im_end|>"
    assert tokenizer.apply_chat_template([USER], tools=TOOLS) == "tools"


def test_strftime_now() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([USER]) == str(datetime.datetime.now().year)


def test_loop_controls_and_scope_of_generation() -> None:
    source = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    )
    assert ChatTemplate(source).render([USER]) == "0221"


def test_compiled_templates_are_kept() -> None:
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={"default": CHATML_WITH_TOOLS})
    for _ in range(3):
        tokenizer.apply_chat_template([USER])
        tokenizer.apply_chat_template([USER], chat_template="{{ 'other' }}")
    assert tokenizer._compile_template.cache_info().misses == 2


def test_a_mistyped_name_is_no_template() -> None:
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={"default": CHATML_WITH_TOOLS})
    with pytest.raises(ValueError, match=r"chat_template: 'defualt'.*default"):
        tokenizer.apply_chat_template([USER], chat_template="defualt")


def render(source: str, messages: Any, **options: Any) -> str:
    return ChatTemplate(source).render(messages, **options)


@pytest.mark.parametrize(
    ("source", "messages", "options", "error"),
    [
        (
            INSTRUCTIONS,
            [ASSISTANT],
            {"variables": {"bos_token": ""}},
            "chat_template: Conversation roles must alternate",
        ),
        ("{{ messages[0].nothing.at_all }}", [USER], {}, "chat_template: 'dict object' has no attribute 'nothing'"),
        ("{{ 'a' + 1 }}", [USER], {}, "chat_template: can only concatenate str"),
        ("{{ ''.__class__.__mro__ }}", [USER], {}, "chat_template: access to attribute '__class__' .* unsafe"),
        ("{{ messages.append(1) }}", [USER], {}, "chat_template: access to attribute 'append' .* unsafe"),
        ("a\n{% if %}", [USER], {}, "chat_template: not valid Jinja, line 2: Expected an expression"),
        ("x", [], {}, r"messages: expected a non-empty list of dicts, got \[\]"),
        ("x", "hello", {}, "messages: expected a non-empty list of dicts, got 'hello'"),
        ("x", [USER, "hello"], {}, r"messages\[1\]: expected a dict with a 'role', got 'hello'"),
        ("x", [{"content": "hello"}], {}, r"messages\[0\]: expected a dict with a 'role'"),
        (
            "x",
            [{"role": "user", "content": 5}],
            {},
            r"messages\[0\].content: expected a string or a list of text parts",
        ),
        (
            "x",
            [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}],
            {},
            r"messages\[0\].content\[0\]: expected .* the only kind supported, got .*image_url",
        ),
        ("x", [USER], {"tools": [print]}, r"tools\[0\]: expected a JSON value, got builtin_function_or_method"),
        ("x", [USER], {"variables": {"a": {"b": object()}}}, r"chat_template_kwargs\.a\.b: expected a JSON value"),
        ("x", [USER], {"continue_final_message": True}, "add_generation_prompt=False, but it is True"),
        (
            "x",
            [USER],
            {"continue_final_message": True, "add_generation_prompt": False},
            "the chat template does not write the final message's content",
        ),
        (
            "x",
            [{"role": "assistant"}],
            {"continue_final_message": True, "add_generation_prompt": False},
            "the final message has no content to continue",
        ),
    ],
)
def test_errors(source: str, messages: Any, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        render(source, messages, **options)


def test_no_template() -> None:
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={})
    with pytest.raises(ValueError, match=r"chat_template: the tokenizer has none; pass chat_template=\.\.\."):
        tokenizer.apply_chat_template([USER])
    tokenizer = Tokenizer(byte_level(), special_tokens={}, chat_templates={"rag": "a", "tool_use": "b"})
    with pytest.raises(ValueError, match="no default template; pass one of these names: rag, tool_use"):
        tokenizer.apply_chat_template([USER])
