"""The far side of a contender's process: one JSON line in, one out. It runs in peers' environments and needs nothing.

The program's only argument is a JSON object of options. Once the model has generated its first token the process
answers {"version": ...}; from then on each line {"prompts": [[token id, ...], ...], "output_lens": [number, ...]} is
answered with what `Generate` returns, or with {"error": ...}.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

# Generates exactly `output_lens` tokens for the prompts, greedily. Returns lists with a value for each request: "first"
# and "last", the seconds from the start to its first and last token, and "lens", its number of tokens; and "seconds",
# until all were done.
Generate = Callable[[list[list[int]], list[int]], dict[str, Any]]


def serve(load: Callable[[dict[str, Any]], tuple[str, Generate]]) -> None:
    """Open the model, then answer until the input ends.

    Args:
        load: from the options to the version of what it opened, and the means to generate.
    """
    # What libraries print goes to the log: the answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(record: dict[str, Any]) -> None:
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    try:
        version, generate = load(json.loads(sys.argv[1]))
        generate([[2, 3, 4, 5, 6, 7, 8, 9]], [1])
    except Exception as error:
        traceback.print_exc()
        answer({"error": describe(error)})
        return
    answer({"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(generate(request["prompts"], request["output_lens"]))
        except Exception as error:
            traceback.print_exc()
            answer({"error": describe(error)})


def describe(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


class Stopwatch:
    """Notes when each request's tokens come."""

    def __init__(self, num_requests: int) -> None:
        self.first: list[float | None] = [None] * num_requests
        self.last = [0.0] * num_requests
        self.lens = [0] * num_requests
        self.start = time.monotonic()

    def note(self, request: int, num_tokens: int) -> None:
        """So many more tokens of a request are there now."""
        now = time.monotonic() - self.start
        if self.first[request] is None:
            self.first[request] = now
        self.last[request] = now
        self.lens[request] += num_tokens

    def record(self) -> dict[str, Any]:
        """What `Generate` returns; the clock ends here."""
        seconds = time.monotonic() - self.start
        return {"first": self.first, "last": self.last, "lens": self.lens, "seconds": seconds}
