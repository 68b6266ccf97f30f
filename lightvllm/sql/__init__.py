"""Questions about a SQLite file: its schema as a prompt, and the model's SQL run without letting it change anything.

Nothing here imports torch; the model is whatever turns chat messages into text.
"""

from lightvllm.sql.ask import Writer, answer, extract_sql
from lightvllm.sql.demo import QUESTIONS as DEMO_QUESTIONS
from lightvllm.sql.demo import build_demo_database
from lightvllm.sql.execute import QueryResult, open_readonly, run_query
from lightvllm.sql.prompt import build_messages
from lightvllm.sql.schema import schema_prompt
from lightvllm.sql.table import result_table

__all__ = [
    "DEMO_QUESTIONS", "QueryResult", "Writer", "answer", "build_demo_database", "build_messages", "extract_sql",
    "open_readonly", "result_table", "run_query", "schema_prompt",
]  # fmt: skip
