"""This engine as a contender.

Options: model, quantization, kv_cache_dtype, kv_cache_bytes, max_num_batched_tokens, max_model_len.
"""

import time
from typing import Any

from serve import Generate, serve  # type: ignore[import-not-found]


def load(options: dict[str, Any]) -> tuple[str, Generate]:
    """See `serve.serve`."""
    from lightvllm import LLM, SamplingParams, __version__

    llm = LLM(
        model=options["model"],
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=options["kv_cache_bytes"],
        max_num_batched_tokens=options["max_num_batched_tokens"],
        max_model_len=options["max_model_len"],
        quantization=options["quantization"],
        kv_cache_dtype=options["kv_cache_dtype"],
    )

    def generate(prompts: list[list[int]], output_lens: list[int]) -> dict[str, Any]:
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in output_lens
        ]
        start = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - start
        times: list[Any] = [output.metrics for output in outputs]
        return {
            "first": [metrics.first_token_time - start for metrics in times],
            "last": [metrics.last_token_time - start for metrics in times],
            "lens": [len(output.outputs[0].token_ids) for output in outputs],
            "seconds": seconds,
        }

    return __version__, generate


if __name__ == "__main__":
    serve(load)
