"""docs/how-to/quantizer.md, followed: checkpoints of the format, and of the scheme, go through `LLM`."""

from pathlib import Path

from tests.docs.how_to import follow


def test_the_page(tmp_path: Path) -> None:
    copy = follow("quantizer.md", tmp_path)
    added = copy.added("lightvllm")
    del added["lightvllm/quantization/fp8.py"]
    assert added == {"lightvllm/quantization/config.py": 1, "lightvllm/quantization/calibrate/schemes.py": 1}
    assert copy.num_passed("tests/quantization/test_fp8.py") == 4
    # The page's own test, and those that go through the table of schemes.
    assert copy.num_passed("tests/quantization/calibrate", "-k", "w8-gptq or w8_gptq") >= 5
