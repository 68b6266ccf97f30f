"""The bodies of /tokenize and /detokenize, and their answers; names as in vLLM."""

from pydantic import BaseModel, Field

from lightvllm.server.limits import TokenIds
from lightvllm.server.protocol.base import RequestModel
from lightvllm.server.protocol.chat import TemplateFields

_MODEL = Field(None, max_length=1024, description="Name of the model; the served one where left out.")
_TOKEN_STRS = Field(False, description="Add each token as the vocabulary spells it.")


class TokenizePromptRequest(RequestModel):
    """Token ids of a text."""

    model: str | None = _MODEL
    prompt: str = Field(description="The text.")
    add_special_tokens: bool = Field(True, description="Add what the tokenizer puts around a text, such as a BOS.")
    return_token_strs: bool = _TOKEN_STRS


class TokenizeChatRequest(TemplateFields):
    """Token ids of a chat: those that /v1/chat/completions would make of it."""

    model: str | None = _MODEL
    return_token_strs: bool = _TOKEN_STRS


class TokenizeResponse(BaseModel):
    """Token ids of a prompt."""

    count: int = Field(description="Number of tokens.")
    max_model_len: int = Field(description="Longest prompt and output together.")
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestModel):
    """Text of token ids."""

    model: str | None = _MODEL
    tokens: TokenIds = Field(description="Token ids.")


class DetokenizeResponse(BaseModel):
    """Text of token ids."""

    prompt: str
