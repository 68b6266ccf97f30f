"""The chat messages a question about a database becomes: the schema as the system's, the question as the user's."""

Message = dict[str, str]


def build_messages(schema: str, question: str) -> list[Message]:
    """Messages for `LLM.chat` that ask for one SQL statement answering `question`.

    `schema` is what `schema_prompt` returns. Raises ValueError for an empty question.
    """
    question = " ".join(question.split())
    if not question:
        raise ValueError("question: is empty; ask something about the database, such as 'How many books are there?'")
    return [{"role": "system", "content": schema}, {"role": "user", "content": question}]
