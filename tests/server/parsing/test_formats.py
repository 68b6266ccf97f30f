"""The chat template tells how its model marks calls and reasoning."""

import pytest

from lightvllm.server.parsing import detect_formats, needs_special_tokens

# What templates of the kind write, in Jinja's own quoting.
HERMES = """{{- "each call within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>,
 \\"arguments\\": <args-json-object>}\\n</tool_call>" }}"""
HERMES_SINGLE_QUOTES = (
    """{{- '\\n<tool_call>\\n{"name": "' }}{{- call.name }}{{- '", "arguments": ' }}{{ '</tool_call>' }}"""
)
LLAMA_3_1 = """{{- 'respond in the format {"name": function name, "parameters": dictionary of its arguments}.' }}
{{- "<|python_tag|>" + call.name + ".call(" }}"""
LLAMA_3_2 = """{{- 'Respond in the format {"name": function name, "parameters": dictionary of its arguments}.' }}"""
THINK = """{%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
OLD_THINK = """{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"""
XML_CALLS = """{{- '<tool_call>\\n<function=' + call.name + '>\\n' }}{% for name, value in call.arguments|items %}"""
OTHER_TOOLS = """{{ '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "' + tool.name + '"' }}"""


@pytest.mark.parametrize(
    ("template", "formats"),
    [
        (HERMES, ("hermes", None)),
        (HERMES_SINGLE_QUOTES, ("hermes", None)),
        (HERMES + THINK, ("hermes", "think")),
        (LLAMA_3_1, ("llama3_json", None)),
        (LLAMA_3_2, ("llama3_json", None)),
        (OLD_THINK, (None, "think")),
        (XML_CALLS, (None, None)),
        (XML_CALLS + THINK, (None, "think")),
        (OTHER_TOOLS, (None, None)),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", (None, None)),
        ("", (None, None)),
        (None, (None, None)),
    ],
)
def test_formats_of_a_template(template, formats):
    assert detect_formats(template) == formats


def test_special_tokens_are_needed_where_calls_may_be_marked_by_them():
    assert needs_special_tokens("hermes")
    assert needs_special_tokens("llama3_json")
    assert not needs_special_tokens(None)
