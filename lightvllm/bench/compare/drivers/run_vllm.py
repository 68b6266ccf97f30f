"""vLLM as a contender. Options: model, kv_cache_bytes, max_num_batched_tokens, max_model_len, threads."""

import os
import time
from typing import Any

from serve import Generate, serve  # type: ignore[import-not-found]


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """See `serve.serve`."""
    # Left alone it takes half of the threads. Its engine is a process of its own, which inherits these.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(options["kv_cache_bytes"] >> 30)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{options['threads'] - 1}"
    os.environ["VLLM_CACHE_ROOT"] = options["cache"]  # an empty one: what an earlier run compiled is no cold start
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(options["cache"], "inductor")
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    import vllm  # type: ignore[import-not-found]

    llm = vllm.LLM(
        model=options["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_num_batched_tokens=options["max_num_batched_tokens"],
        max_model_len=options["max_model_len"],
        enable_prefix_caching=True,
        disable_log_stats=False,  # without it there are no times
    )

    def generate(prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        params = [
            vllm.SamplingParams(temperature=0, max_tokens=length, min_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        start = time.monotonic()
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        seconds = time.monotonic() - start
        return {
            "first": [output.metrics.first_token_ts - start for output in outputs],
            "last": [output.metrics.last_token_ts - start for output in outputs],
            "lens": [len(output.outputs[0].token_ids) for output in outputs],
            "seconds": seconds,
        }

    return vllm.__version__, generate


if __name__ == "__main__":
    serve(load)
