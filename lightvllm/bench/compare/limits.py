"""What the machine allows: measured rates, and the tokens a second that no engine can pass with them."""

import json
import sys
from dataclasses import dataclass

from lightvllm.bench.compare.contenders import DRIVERS
from lightvllm.bench.compare.llama_cpp import run_tool
from lightvllm.bench.compare.loads import Load
from lightvllm.bench.random_checkpoint import Shape

BITS = {"bf16": 16, "int8": 8, "4-bit": 4}
KV_BYTES = {"bf16": 2, "int8": 1, "4-bit": 1}  # of one number in the cache, as small as an engine here has it


@dataclass(frozen=True)
class Limits:
    """Rates with all threads, the best of several tries.

    Attributes:
        memory: bytes read a second.
        float32, bfloat16, int8: operations a second in a product of 2048 x 2048 matrices, two for a multiplication and
            the addition after it; int8 products are summed in int32.
    """

    memory: float
    float32: float
    bfloat16: float
    int8: float
    threads: int

    def best(self, other: "Limits") -> "Limits":
        """The better of two measurements, rate by rate."""
        rates = {name: max(getattr(self, name), getattr(other, name)) for name in vars(self)}
        return Limits(**rates)

    def arithmetic(self, dtype: str) -> float:
        """Operations a second for weights of a number type: 4-bit ones are made int8 to be multiplied."""
        return self.bfloat16 if dtype == "bf16" else max(self.int8, self.bfloat16)


@dataclass(frozen=True)
class Bound:
    """The most tokens a second that the machine allows, and by what: "memory" or "arithmetic"."""

    rate: float
    by: str


def measure_limits(threads: int) -> Limits:
    """Measure, in a process of its own."""
    command = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, str(DRIVERS / "measure_limits.py")]
    return Limits(**json.loads(run_tool(command, timeout=120)))


def prefill_bound(limits: Limits, shape: Shape, dtype: str, load: Load) -> Bound:
    """Of prompt tokens of a load of equal requests without a context."""
    num_tokens = load.num_requests * load.input_lens[0]
    attention = attention_operations(shape) * (load.input_lens[0] + 1) / 2
    operations = num_tokens * (2 * shape.layer_parameters + attention) + 2 * load.num_requests * shape.head_parameters
    return _bound(limits, dtype, num_tokens, operations, weight_bytes(shape, dtype))


def decode_bound(limits: Limits, shape: Shape, dtype: str, load: Load) -> Bound:
    """Of generated tokens of a load of equal requests, each of which reads its own context, shared or not."""
    count = load.num_requests
    length = load.context_len + load.input_lens[0] + load.output_lens[0] / 2  # on average
    operations = 2 * (shape.layer_parameters + shape.head_parameters) + attention_operations(shape) * length
    num_bytes = weight_bytes(shape, dtype) + count * length * cache_bytes(shape, dtype)
    return _bound(limits, dtype, count, count * operations, num_bytes)


def weight_bytes(shape: Shape, dtype: str) -> float:
    """Of all weights a step reads; what a format stores beside them, such as scales, is not counted."""
    return (shape.layer_parameters + shape.head_parameters) * BITS[dtype] / 8


def cache_bytes(shape: Shape, dtype: str) -> int:
    """That a token takes in the KV cache."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * KV_BYTES[dtype]


def attention_operations(shape: Shape) -> int:
    """Of one token's attention to another: the score, and the weighted value."""
    return 2 * 2 * shape.layers * shape.heads * shape.head_dim


def _bound(limits: Limits, dtype: str, num_tokens: int, operations: float, num_bytes: float) -> Bound:
    reading, computing = num_bytes / limits.memory, operations / limits.arithmetic(dtype)
    return Bound(num_tokens / max(reading, computing), "memory" if reading > computing else "arithmetic")
