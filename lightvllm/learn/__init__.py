"""Simulators of the engine's ideas that drive the real scheduler, prefix cache and block pool; `kv` counts.

Each is a function that returns a result: its figures as fields, `table()` for the terminal and
`plot()` for a picture. Time is simulated (`StepCost`), so nothing waits, and no model or torch is needed.

    from lightvllm import learn

    result = learn.batching(learn.Workload.random(num_requests=8, rate=4))
    print(result.table())
    result.plot().savefig("batching.png")
"""

# Not lazily: a module of the same name as its function would take the function's place when it is loaded later.
from lightvllm.learn.batching import batching
from lightvllm.learn.chunked import chunked
from lightvllm.learn.clock import StepCost
from lightvllm.learn.kv import kv
from lightvllm.learn.paged import paged
from lightvllm.learn.preempt import preempt
from lightvllm.learn.prefix import prefix
from lightvllm.learn.workload import PlannedRequest, Workload

__all__ = ["PlannedRequest", "StepCost", "Workload", "batching", "chunked", "kv", "paged", "preempt", "prefix"]
