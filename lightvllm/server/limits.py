"""How large the parts of a request may be. Past these a request is a mistake or an attack: 400, naming the field."""

from typing import Annotated

from pydantic import Field, StringConstraints

MAX_PROMPTS = 2048
MAX_MESSAGES = 4096
MAX_CONTENT_PARTS = 1024
MAX_TOOLS = 128
MAX_TOOL_CALLS = 128
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIAS = 4096
MAX_ALLOWED_TOKEN_IDS = 2**20
# Of lists that each completion carries with it, in all completions of a request together.
MAX_CARRIED_ITEMS = 2**20
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_VARIABLES = 64
MAX_TEMPLATE_CHARACTERS = 2**18
# Of a JSON schema, a regular expression or a grammar as text; how much work they may be is bounded where they are read.
MAX_STRUCTURE_CHARACTERS = 2**18
MAX_CHOICES = 4096
MAX_TIMEOUT = 24 * 3600.0
MAX_JSON_DEPTH = 128
MAX_JSON_KEYS = 2**14  # of one object
# A text with more characters per token than this has never been seen; one that could not fit is not even tokenized.
MAX_CHARACTERS_PER_TOKEN = 128

# Bodies that are being read may together have so many times the bytes that one may have.
MAX_BODIES = 8

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=INT64_MAX)]
# fail_fast: the first mistake is enough; an error for each of a million items would take gigabytes.
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
# What reaches logs, headers and cache keys: short, and of characters that show.
Label = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x20-\x7e]+$")]
