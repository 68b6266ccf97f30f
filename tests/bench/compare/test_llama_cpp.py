"""llama.cpp's tools: what they are asked, and what they said once, word for word (the files beside this one)."""

import stat
from pathlib import Path

import pytest

from lightvllm.bench.compare.llama_cpp import check_tools, load_command, parse_load, parse_start, run_tool
from lightvllm.bench.compare.loads import LOADS, Load, decode_rate, prefill_rate
from lightvllm.bench.compare.process import ContenderError

HERE = Path(__file__).parent
BATCHED = (HERE / "llama_batched_bench.jsonl").read_text()
# pp 16, tg 4, pl 8: t_pp 3.395600 s at 37.695839 tokens/s, t_tg 4.382086 s at 7.302459 tokens/s.
LOAD = Load(name="decode-8", num_requests=8, input_lens=(16, 16), output_lens=(4, 4))


def test_rates_are_those_the_tool_gives() -> None:
    timing = parse_load(BATCHED, LOAD)
    assert prefill_rate(LOAD, timing) == pytest.approx(37.695839, rel=1e-5)
    assert decode_rate(LOAD, timing) == pytest.approx(7.302459, rel=1e-5)
    assert timing.whole == pytest.approx(7.777686)


def test_a_run_of_another_size_is_refused() -> None:
    other = Load(name="decode-8", num_requests=8, input_lens=(16, 16), output_lens=(5, 5))
    with pytest.raises(ContenderError, match=r"ran \(8, 16, 4\), not \(8, 16, 5\)"):
        parse_load(BATCHED, other)


@pytest.mark.parametrize("output", ["", "\n", BATCHED * 2, BATCHED.replace('"t_pp"', '"t_q"'), "{"])
def test_other_output_is_refused(output: str) -> None:
    with pytest.raises(ContenderError, match="llama-batched-bench: cannot read its output"):
        parse_load(output, LOAD)


def test_the_version() -> None:
    output = (HERE / "llama_bench.json").read_text()
    assert parse_start(output) == "build 1 (0c1e570)"
    for wrong in ("", "[]", "[{}]", "{}"):
        with pytest.raises(ContenderError, match="llama-bench: cannot read its output"):
            parse_start(wrong)


def test_commands() -> None:
    by_name = {load.name: load for load in LOADS}
    words = load_command(Path("/bin"), Path("m.gguf"), 2, by_name["decode-32"])
    assert words[0] == "/bin/llama-batched-bench"
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert (options["-npp"], options["-ntg"]) == ("128", "32")
    assert options["-npl"] == "32"
    assert options["-t"] == "2"
    assert options["-c"] == str(32 * 256)  # 160 cells for each request, rounded up
    words = load_command(Path("/bin"), Path("m.gguf"), 2, by_name["context"])
    assert words[-2:] == ["-pps", "-kvu"]
    assert words[words.index("-npp") + 1] == str(8192 + 16)
    assert words[words.index("-c") + 1] == str(8448)  # 8208 shared + 8 x 16
    with pytest.raises(ContenderError, match="one size only"):
        load_command(Path("/bin"), Path("m.gguf"), 2, by_name["mixed"])


def test_tools_that_are_missing_or_fail(tmp_path: Path) -> None:
    tool = tmp_path / "llama-bench"
    tool.write_text("#!/bin/sh\necho loading >&2\necho 'unable to load model' >&2\nexit 1\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(ContenderError, match="no llama-batched-bench, llama-quantize in "):
        check_tools(tmp_path)
    with pytest.raises(ContenderError, match="llama-bench: exit code 1: unable to load model"):
        run_tool([str(tool)], timeout=10)
    with pytest.raises(ContenderError, match="llama-quantize: No such file"):
        run_tool([str(tmp_path / "llama-quantize")], timeout=10)
    with pytest.raises(ContenderError, match="sleep: not done within 0 s"):
        run_tool(["sleep", "9"], timeout=0.1)
