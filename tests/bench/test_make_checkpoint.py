"""The random checkpoint is one that both sides of a comparison can load."""

import json
import subprocess
import sys
from pathlib import Path

import torch
import transformers

from lightvllm import LightvLLM

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "make_checkpoint.py"
SHAPE = "--vocab-size 200 --hidden-size 64 --intermediate-size 96 --layers 2 --heads 4 --kv-heads 2 --head-dim 32"


def test_both_load_it_and_agree(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), *SHAPE.split(), "--dtype", "float32", "--no-tied"]
    subprocess.run(command, check=True, capture_output=True)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    input_ids = torch.tensor([[5, 0, 199, 7]])
    with torch.inference_mode():
        logits = LightvLLM.from_pretrained(tmp_path)(input_ids).logits
        torch.testing.assert_close(logits, theirs(input_ids).logits, atol=1e-4, rtol=0)
    assert logits.std() > 0.01  # not of zeros


def test_the_shape_is_qwen3_0_6b_s_by_default() -> None:
    code = f"""
import json, runpy, sys
sys.argv = ["make_checkpoint.py", "folder"]
module = runpy.run_path({str(SCRIPT)!r})
print(json.dumps(module["shape_of"](module["parse_args"]()).hf_config()))
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    config = json.loads(result.stdout)
    assert (
        config
        | {
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 3072,
            "tie_word_embeddings": True,
            "dtype": "bfloat16",
        }
        == config
    )
