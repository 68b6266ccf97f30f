"""Where the time of a prefill and of decodes goes, op by op, as PyTorch's profiler sees it.

    python benchmarks/make_checkpoint.py SHAPE
    python benchmarks/profile_step.py SHAPE [--quantization int8]

Prompts of 128 random tokens; of the decodes their short prompts are a part. Run it on a machine that does nothing else.
"""

import argparse
import random
import time

from torch.profiler import ProfilerActivity, profile

from lightvllm import LLM, SamplingParams

# Name -> requests, prompt and output tokens.
LOADS = {"prefill of 8": (8, 128, 1), "decode of 1": (1, 8, 64), "decode of 32": (32, 8, 32)}
SHOWN = 6


def generate(llm: LLM, requests: int, prompt_len: int, output_len: int) -> float:
    """Seconds for requests of random tokens."""
    vocabulary = range(llm.model_config.vocab_size)
    prompts = [random.choices(vocabulary, k=prompt_len) for _ in range(requests)]
    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Print the ops that take most of each load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--quantization", choices=("int8", "w4"))
    args = parser.parse_args()
    llm = LLM(args.model, skip_tokenizer_init=True, max_model_len=256, quantization=args.quantization)
    for name, load in LOADS.items():
        generate(llm, *load)  # warm-up
        plain = generate(llm, *load)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            generate(llm, *load)
        ops = sorted(profiler.key_averages(), key=lambda op: -op.self_cpu_time_total)
        total = sum(op.self_cpu_time_total for op in ops)
        print(f"{name}: {plain:.2f} s, {total / 1e6:.2f} s in ops when profiled")
        for op in ops[:SHOWN]:
            share, each = op.self_cpu_time_total / total, op.self_cpu_time_total / op.count
            print(f"  {share:6.1%}  {op.key:32} {op.count:6} x {each:9.0f} us")


if __name__ == "__main__":
    main()
