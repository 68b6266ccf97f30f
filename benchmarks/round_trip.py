"""The folders of `lightvllm quantize` in other programs: does each read them, and what does it answer?

    python benchmarks/round_trip.py [--vllm-python FILE] [--transformers-python FILE] [--schemes w8a8,w4-gptq]

Quantizes the default model by each scheme, asks it questions on this engine, and has each program that is given (vLLM's
CPU build; transformers with the package compressed-tensors) answer the same ones, greedily. What is printed is how
many answers are the same, token for token. Few differ: other programs round inputs elsewhere, or not at all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lightvllm import LLM, SamplingParams
from lightvllm.cli.eval import PAIRS, SEED, SPLIT
from lightvllm.cli.quantize import calibration
from lightvllm.config import DEFAULT_MODEL
from lightvllm.quantization.calibrate.schemes import SCHEMES
from lightvllm.quantization.calibrate.walk import quantize_checkpoint
from lightvllm.training.answers import tokenized
from lightvllm.training.generator import make_sample

MAX_TOKENS = 64
# Programs that read a JSON list of [folder, prompts] and print the answers' token ids in a line.
VLLM = f"""
import json, sys
if __name__ == "__main__":
    from vllm import LLM, SamplingParams
    folder, prompts = json.load(sys.stdin)
    llm = LLM(folder, skip_tokenizer_init=True, enforce_eager=True, max_model_len=1024, max_num_seqs=8)
    params = SamplingParams(temperature=0, max_tokens={MAX_TOKENS}, detokenize=False)
    outputs = llm.generate([{{"prompt_token_ids": prompt}} for prompt in prompts], params)
    print(json.dumps([list(output.outputs[0].token_ids) for output in outputs]), flush=True)
"""
TRANSFORMERS = f"""
import json, sys
import torch
from transformers import AutoModelForCausalLM
folder, prompts = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(folder)
answers = []
for prompt in prompts:
    output = model.generate(torch.tensor([prompt]), max_new_tokens={MAX_TOKENS}, do_sample=False)
    answers.append(output[0, len(prompt):].tolist())
print(json.dumps(answers), flush=True)
"""


def ask_other(python: str, program: str, folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The answers of another program in its own environment."""
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": ""}
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        result = subprocess.run(
            [python, file.name],
            input=json.dumps([str(folder), prompts]),
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=1200,
            check=True,
        )
    # Others write their logs there, too.
    (answers,) = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[[")]
    return answers


def ask_here(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The same of this engine."""
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, detokenize=False)
    with LLM(str(folder), skip_tokenizer_init=True) as llm:
        return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]


def main() -> None:
    """Print a line for each scheme and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="Python with vLLM's CPU build")
    parser.add_argument("--transformers-python", help="Python with transformers and compressed-tensors")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="of lightvllm quantize (default: all)")
    parser.add_argument("--questions", type=int, default=20, help="of databases unseen in training (default: 20)")
    args = parser.parse_args()
    if not (args.vllm_python or args.transformers_python):
        parser.error("give --vllm-python, --transformers-python or both")
    samples = [make_sample(SPLIT, SEED, index, PAIRS) for index in range(-(-args.questions // PAIRS))]
    prompts = [ids[:first] for sample in samples for ids, first in tokenized(DEFAULT_MODEL, sample)][: args.questions]
    others = [("vLLM", args.vllm_python, VLLM), ("transformers", args.transformers_python, TRANSFORMERS)]
    for scheme in args.schemes.split(","):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / scheme
            sequences = calibration(DEFAULT_MODEL, scheme, None, samples=128, length=512)
            quantize_checkpoint(DEFAULT_MODEL, folder, scheme, sequences=sequences, show_progress=sys.stderr.isatty())
            mine = ask_here(folder, prompts)
            for name, python, program in others:
                if python:
                    theirs = ask_other(python, program, folder, prompts)
                    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
                    print(f"{scheme}: {name} gives {same} of {len(mine)} answers token for token", flush=True)


if __name__ == "__main__":
    main()
