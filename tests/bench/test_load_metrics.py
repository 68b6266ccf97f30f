"""The figures of a load, against numbers worked out by hand and against numpy."""

import numpy as np
import pytest

from lightvllm.bench.load.metrics import count_errors, details, output_len, peak_concurrency, percentile, summarize
from lightvllm.bench.load.report import load_text
from lightvllm.bench.load.run import Run
from lightvllm.bench.load.stream import Outcome

FAST = Outcome(start=0.0, ttft=0.1, itls=[0.02, 0.04], latency=0.16, prompt_tokens=5, output_tokens=3, text="abc")
SLOW = Outcome(start=0.1, ttft=0.3, itls=[0.1], latency=0.5, prompt_tokens=7, output_tokens=5, text="abcde")
ONE_TOKEN = Outcome(start=0.7, ttft=0.2, latency=0.2, prompt_tokens=1, output_tokens=1, text="a")
FAILED = Outcome(start=0.1, ttft=9.0, latency=9.0, prompt_tokens=99, output_tokens=99, error="status 503")


def test_totals() -> None:
    record = summarize(Run([FAST, SLOW, ONE_TOKEN, FAILED], 2.0))
    assert (record["completed"], record["failed"], record["duration"]) == (3, 1, 2.0)
    assert (record["total_input_tokens"], record["total_output_tokens"]) == (13, 9)
    assert record["request_throughput"] == 1.5
    assert record["output_throughput"] == 4.5
    assert record["total_token_throughput"] == 11.0
    assert record["max_concurrent_requests"] == 2
    assert record["request_goodput"] is None


def test_latencies() -> None:
    record = summarize(Run([FAST, SLOW, ONE_TOKEN, FAILED], 2.0), percentiles=[50, 90, 99.9])
    assert record["mean_ttft_ms"] == pytest.approx(200)
    assert record["median_ttft_ms"] == pytest.approx(200)
    assert record["std_ttft_ms"] == pytest.approx(np.std([100, 300, 200]))
    assert record["p90_ttft_ms"] == pytest.approx(280)  # eight tenths of the way from 200 to 300
    assert record["p99.9_ttft_ms"] == pytest.approx(299.8)
    # Two gaps after the first token of FAST in 60 ms, four of SLOW in 200 ms, none of the third.
    assert record["mean_tpot_ms"] == pytest.approx((30 + 50) / 2)
    assert record["mean_itl_ms"] == pytest.approx((20 + 40 + 100) / 3)
    assert record["median_itl_ms"] == record["p50_itl_ms"] == pytest.approx(40)
    assert record["mean_e2el_ms"] == pytest.approx((160 + 500 + 200) / 3)
    assert "mean_client_queue_time_ms" not in record


def test_goodput() -> None:
    run = Run([FAST, SLOW, ONE_TOKEN, FAILED], 2.0)

    def good(**limits: float) -> float:
        return summarize(run, goodput=limits)["request_goodput"] * run.seconds

    assert good(ttft=100) == 1  # a limit may be reached
    assert good(ttft=99.9) == 0
    assert good(ttft=250) == 2
    assert good(tpot=30.1) == 2  # a single token has no time after it
    assert good(ttft=250, e2el=180) == 1
    assert good(ttft=1000, tpot=1000, e2el=1000) == 3  # never the failed one


def test_a_server_that_does_not_count() -> None:
    uncounted = Outcome(ttft=0.1, itls=[0.1, 0.1], latency=0.4, text="abc")
    assert output_len(uncounted) == 3
    record = summarize(Run([uncounted, FAST], 1.0))
    assert record["num_without_usage"] == 1
    assert record["total_output_tokens"] == 6
    assert record["mean_tpot_ms"] == pytest.approx((150 + 30) / 2)
    assert output_len(Outcome(latency=0.4)) == 0


def test_nothing_completed() -> None:
    record = summarize(Run([FAILED], 1.0), goodput={"ttft": 10})
    assert (record["completed"], record["request_goodput"], record["mean_ttft_ms"]) == (0, 0, None)
    assert "-" in load_text(record)


@pytest.mark.parametrize("percent", [0, 1, 37.5, 50, 99, 100])
@pytest.mark.parametrize("number", [1, 2, 7, 100])
def test_percentiles_are_numpy_s(percent: float, number: int) -> None:
    values = list(np.random.default_rng(number).random(number))
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_peak_concurrency() -> None:
    def outcomes(*spans: tuple[float, float]) -> list[Outcome]:
        return [Outcome(start=start, latency=end - start) for start, end in spans]

    assert peak_concurrency([]) == 0
    assert peak_concurrency(outcomes((0, 1), (1, 2), (2, 3))) == 1
    assert peak_concurrency(outcomes((0, 4), (1, 3), (2, 5), (3.5, 6))) == 3


def test_details_and_errors() -> None:
    run = Run([FAST, FAILED, FAILED], 1.0)
    found = details(run)
    assert {len(column) for column in found.values()} == {3}
    assert found["generated_texts"][0] == "abc"
    assert found["itls"][0] == [0.02, 0.04]
    assert found["errors"] == [None, "status 503", "status 503"]
    assert count_errors(run) == [("status 503", 2)]


def test_the_table_has_every_figure() -> None:
    record = summarize(Run([FAST, SLOW], 2.0), ["ttft", "client_queue_time"], [99], {"ttft": 100})
    text = load_text(record)
    assert "Good requests a second" in text
    assert f"{record['p99_ttft_ms']:.2f}" in text
    assert "Held back by --max-concurrency (ms)" in text
    assert "Inter-token" not in text
