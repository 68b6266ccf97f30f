"""langchain-openai, as its users write it."""

from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.sdk.wire import SCHEMA, Server

# The model of random weights would reason without an end.
RANDOM = {"temperature": 1, "seed": 1, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
MESSAGES = [SystemMessage(SCHEMA), HumanMessage("How many books are there?")]


class Order(BaseModel):
    """What is to be brought."""

    drink: Literal["tea", "coffee"]
    cups: Literal[1, 2, 3]


@tool
def bring(order: Order) -> str:
    """Brings a drink."""
    return f"{order.cups} {order.drink}"


def chat(server: Server, **options: Any) -> ChatOpenAI:
    defaults = {"base_url": f"{server.url}/v1", "api_key": server.api_key or "none", "model": server.model}
    return ChatOpenAI(**{**defaults, "temperature": 0, "max_retries": 0, **options})


def test_invoke_and_stream(server: Server) -> None:
    model = chat(server)
    answer = model.invoke(MESSAGES)
    assert isinstance(answer, AIMessage)
    assert str(answer.content).startswith("SELECT ")
    assert answer.usage_metadata
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] == "stop"
    chunks = list(model.stream(MESSAGES))
    assert len(chunks) > 2
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == answer.content


def test_batch(server: Server) -> None:
    assert len({str(answer.content) for answer in chat(server).batch([MESSAGES] * 3)}) == 1


def test_structured_output(server: Server, assistant: Server) -> None:
    for method in ("json_schema", "function_calling"):
        model = chat(assistant, **RANDOM).with_structured_output(Order, method=method)
        assert isinstance(model.invoke([HumanMessage("Two coffees!")]), Order)
    assert isinstance(chat(server, temperature=1, seed=1).with_structured_output(Order).invoke(MESSAGES), Order)


def test_tools(assistant: Server) -> None:
    model = chat(assistant, **RANDOM).bind_tools([bring], tool_choice="bring", parallel_tool_calls=False)
    answer = model.invoke([HumanMessage("Two coffees!")])
    [call] = answer.tool_calls
    assert call["name"] == "bring"
    result = bring.invoke(call)
    follow_up = [HumanMessage("Two coffees!"), answer, result]
    assert chat(assistant, max_tokens=4).invoke(follow_up).usage_metadata
