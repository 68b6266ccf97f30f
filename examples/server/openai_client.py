"""OpenAI's own SDK against a running server: python examples/server/openai_client.py [http://127.0.0.1:8000/v1]"""

import sys
from typing import Literal

from openai import OpenAI
from pydantic import BaseModel


class Query(BaseModel):
    """What the answer is to look like."""

    table: Literal["books", "authors"]
    needs_join: bool


client = OpenAI(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1", api_key="none")
model = client.models.list().data[0].id
schema = "books: id int key, title text, year int, author_id int -> authors.id\nauthors: id int key, name text"
messages = [
    {"role": "system", "content": schema},
    {"role": "user", "content": "Which books appeared after 1990?"},
]

for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

query = client.chat.completions.parse(model=model, messages=messages, response_format=Query, max_tokens=100)
print(query.choices[0].message.parsed)

choice = client.chat.completions.create(
    model=model, messages=messages, extra_body={"structured_outputs": {"choice": ["SELECT", "INSERT"]}}
)
print(choice.choices[0].message.content)
