"""nano-vllm's workload, on this engine and on transformers' continuous batching: each runs in a process of its own.

256 requests of 100 to 1,024 prompt and output tokens, as its bench.py draws them
(https://github.com/GeeeekExplorer/nano-vllm): all sent at once, temperature 0.6, no end before the output's length.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTHS = 100, 1024  # of prompts and outputs
TOKEN_IDS = 0, 10_000
TEMPERATURE = 0.6
MAX_MODEL_LEN = 4096
WARM_UP = 8, 16  # requests and output tokens


@dataclass(frozen=True)
class Requests:
    """Prompts, and how many tokens are to follow each."""

    prompts: list[list[int]]
    output_lens: list[int]

    @classmethod
    def draw(cls, count: int, seed: int = 0) -> "Requests":
        """With seed 0 and 256 requests the very ones of nano-vllm: 133,966 output tokens."""
        draw = random.Random(seed)
        prompts = [[draw.randint(*TOKEN_IDS) for _ in range(draw.randint(*LENGTHS))] for _ in range(count)]
        return cls(prompts, [draw.randint(*LENGTHS) for _ in range(count)])

    @property
    def num_output_tokens(self) -> int:
        """Of all together."""
        return sum(self.output_lens)

    def short(self) -> "Requests":
        """A few of them with short outputs, for a warm-up."""
        count, output_len = WARM_UP
        return Requests(self.prompts[:count], [output_len] * len(self.prompts[:count]))


@dataclass(frozen=True)
class Run:
    """One run, from sending the requests to the last token.

    Attributes:
        output_tokens: that were asked for.
        first_seconds: of a run of other requests before it, which captured graphs; None where there was none.
        how: what ran, in words.
        is_done: False if it was ended before it had all tokens.
    """

    seconds: float
    output_tokens: int
    first_seconds: float | None
    how: str
    is_done: bool = True


def run_engine(folder: Path, count: int, options: dict[str, Any]) -> Run:
    """This engine, its weights drawn."""
    from lightvllm import LLM, SamplingParams

    def run(requests: Requests) -> tuple[float, int]:
        params = [
            SamplingParams(temperature=TEMPERATURE, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in requests.output_lens
        ]
        start = time.perf_counter()
        outputs = llm.generate(requests.prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        found = sum(len(output.outputs[0].token_ids) for output in outputs)
        if found != requests.num_output_tokens:
            raise ValueError(f"the engine gave {found} tokens, where {requests.num_output_tokens} were asked for")
        return seconds, found

    common = {"load_format": "dummy", "skip_tokenizer_init": True, "max_model_len": MAX_MODEL_LEN}
    with LLM(folder, **common | options) as llm:
        run(Requests.draw(count).short())
        first, _ = run(Requests.draw(count, seed=1))
        seconds, found = run(Requests.draw(count))
    return Run(seconds, found, first, "lightvllm")


def run_transformers(folder: Path, count: int, device: str, limit: float) -> Run:
    """transformers' continuous batching as it comes: with flash-attention where that is installed, else with SDPA.

    Args:
        limit: seconds after which it is ended, done or not.
    """
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()
    requests = Requests.draw(count)
    _generate(model, requests.short(), limit)
    seconds, found = _generate(model, requests, limit)
    if found is not None and found != requests.num_output_tokens:
        raise ValueError(f"transformers gave {found} tokens, where {requests.num_output_tokens} were asked for")
    how = f"transformers {transformers.__version__}, attention {model.config._attn_implementation}"
    return Run(seconds, requests.num_output_tokens, None, how, is_done=found is not None)


def _generate(model: Any, requests: Requests, limit: float) -> tuple[float, int | None]:
    """Seconds and generated tokens of all requests, each of which has a length of its own; None for too long a run.

    As of our engine, time begins when it is ready: with a cache, and warmed up in its own way.
    """
    from transformers import GenerationConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    longest_prompt, longest_output = max(map(len, requests.prompts)), max(requests.output_lens)
    config = GenerationConfig(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, eos_token_id=-1, max_new_tokens=longest_output
    )
    hints = WorkloadHints(longest_prompt, longest_output, len(requests.prompts))
    found = 0
    with model.continuous_batching_context_manager(generation_config=config, workload_hints=hints) as manager:
        start = time.perf_counter()
        for prompt, length in zip(requests.prompts, requests.output_lens, strict=True):
            manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
        unfinished = len(requests.prompts)
        while unfinished:
            if (seconds := time.perf_counter() - start) > limit:
                manager.stop(hard_stop=True)
                return seconds, None
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise ValueError("transformers' continuous batching stopped before it was done")
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise ValueError(f"transformers' continuous batching failed: {result.error}")
                found += len(result.generated_tokens)
                unfinished -= 1
        seconds = time.perf_counter() - start
    return seconds, found
