"""In which order requests are served: one line a policy.

What runs and what waits stand in this one order, so a policy says three things: who is given tokens first, who is
admitted next, and who gives its blocks up when they run out, the last. A request's place is fixed when it is added.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightvllm.engine.request import Request

# Whose number is smallest is served first; of equal ones, who arrived first.
POLICIES: dict[str, Callable[["Request"], float]] = {
    "fcfs": lambda request: 0,
    "priority": lambda request: request.priority,
}
