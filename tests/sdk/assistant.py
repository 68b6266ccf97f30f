"""A checkpoint made by hand that calls tools and reasons: it says what it is told to, and otherwise noise.

The next token depends on the last alone: embedding and output head are all there is, the one layer adds nothing. Each
piece of a script is a token of its own, and the head's row of a piece is the embedding of the piece before it. The
tokens of single bytes live in other dimensions, at random: from them comes noise, often no valid UTF-8.
"""

import itertools
import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer

from tests.e2e.checkpoint import IM_END, byte_tokenizer
from tests.models.checkpoints import SHAPE

MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
LOOK = '<tool_call>\n{"name": "look", "arguments": {"room": "hall", "floor": 3}}\n</tool_call>'
PAINT = '<tool_call>\n{"name": "paint", "arguments": {"deep": true}}\n</tool_call>'
THOUGHT = "<think>\nWhere to go? Up or down?\n</think>\n\n"
SCRIPTS = {
    "<|call|>": LOOK,
    "<|calls|>": f"So be it.\n{LOOK}\n{PAINT}",
    "<|think|>": f"{THOUGHT}There.",
    "<|think-call|>": f"{THOUGHT}{LOOK}",
}
CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one so: <tool_call>
{"name": "its name", "arguments": {}}
</tool_call><|im_end|>
{% endif %}
{%- for document in documents or [] %}<|im_start|>document
{{ document.text }}<|im_end|>
{% endfor %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{{ script }}{% endif %}"""

HIDDEN = 128
SCRIPT, BYTES, CONSTANT = slice(0, 64), slice(64, 127), 127  # the dimensions of each kind of token


def make_assistant(folder: Path) -> Path:
    """Write the checkpoint to `folder` and return it."""
    tokenizer, scripts = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id(IM_END)
    _model(tokenizer.get_vocab_size(), [[*script, eos] for script in scripts]).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    tokenizer_config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": IM_END}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"chat_template": CHAT_TEMPLATE}))
    return folder


def _tokenizer() -> tuple[Tokenizer, list[list[int]]]:
    """Bytes, marks, and the scripts' pieces, which no text is encoded to; and the scripts in tokens, name first."""
    plain = json.loads(byte_tokenizer().to_str())
    space, newline = "\u0120", "\u010a"  # as a byte-level vocabulary spells them
    pieces: list[list[str]] = []
    used = set(plain["model"]["vocab"])
    for text in SCRIPTS.values():
        rest = text.replace(" ", space).replace("\n", newline)
        pieces.append([])
        while rest:
            new = (rest[:size] for size in range(2, len(rest) + 1) if rest[:size] not in used)
            piece = next(new, None) or pieces[-1].pop() + rest  # what is left may be a piece of another script
            used.add(piece)
            pieces[-1].append(piece)
            rest = rest[len(piece) :] if rest.startswith(piece) else ""
    for piece in (piece for script in pieces for piece in script):
        plain["model"]["vocab"][piece] = len(plain["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.add_tokens(MARKS)  # tokens of their own, but not special ones: they are part of the text
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SCRIPTS])
    return tokenizer, [
        [tokenizer.token_to_id(token) for token in (name, *script)]
        for name, script in zip(SCRIPTS, pieces, strict=True)
    ]


def _model(vocab_size: int, scripts: list[list[int]]) -> transformers.PreTrainedModel:
    shape = {**SHAPE, "vocab_size": vocab_size, "hidden_size": HIDDEN, "num_hidden_layers": 1, "head_dim": 32}
    config = transformers.Qwen3Config(**{**shape, "max_position_embeddings": 4096})
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM._from_config(config).eval()
    embedding, head, layer = model.model.embed_tokens.weight, model.lm_head.weight, model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        embedding.zero_()
        head.zero_()
        embedding[:, BYTES] = torch.nn.functional.normalize(torch.randn(vocab_size, 63), dim=1)
        embedding[:, CONSTANT] = 1
        head[:, BYTES] = torch.randn(vocab_size, 63) * 0.2
        for script in scripts:
            starts = script[:-1]
            embedding[starts] = 0
            embedding[starts, SCRIPT] = torch.nn.functional.normalize(torch.randn(len(starts), 64), dim=1)
            head[starts] = 0
            head[starts, CONSTANT] = -5  # never after a byte
        for script in scripts:
            for token, following in itertools.pairwise(script):
                head[following, SCRIPT] += 3 * embedding[token, SCRIPT]
    return model
