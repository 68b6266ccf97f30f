"""docs/how-to/quantizer.md, followed: checkpoints of the format, and of the scheme, go through `LLM`."""

from pathlib import Path

from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("quantizer.md", tmp_path)
    copy.check_style()
    added = copy.added("lightvllm")
    del added["lightvllm/quantization/fp8.py"]
    assert added == {"lightvllm/quantization/config.py": 1, "lightvllm/quantization/calibrate/schemes.py": 1}
    # The page's own tests, and those that go through the table of schemes: what is written, and what comes of it.
    names = ["test_fp8", "calibrate/test_w8_gptq", "calibrate/test_walk", "calibrate/test_round_trip"]
    files = [f"tests/quantization/{name}.py" for name in names]
    assert copy.num_passed(*files, "-k", "fp8 or w8-gptq or w8_gptq") == 4 + 1 + 3 * 2
