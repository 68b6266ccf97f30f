"""What `/metrics` says: vLLM's names, types, labels and buckets, and values that a hand can compute."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from httpx2 import ASGITransport, AsyncClient
from prometheus_client import REGISTRY, Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lightvllm.engine.messages import EngineReady, StepReport
from lightvllm.engine.observer import EngineObserver, Observers, RequestRecord
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.engine.stats import EngineStats
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.metrics import HttpMetrics, Metrics

BY_ENGINE = {"model_name", "engine"}
SECONDS = "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0"
INTER_TOKEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0"
FIRST_TOKEN = (
    "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0"
)
TOKENS = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0"  # to max_model_len, which is 1500 here

GAUGES = {
    "vllm:num_requests_running": BY_ENGINE,
    "vllm:num_requests_waiting": BY_ENGINE,
    "vllm:num_requests_waiting_by_reason": BY_ENGINE | {"reason"},
    "vllm:kv_cache_usage_perc": BY_ENGINE,
    "vllm:gpu_cache_usage_perc": BY_ENGINE,
    "vllm:engine_sleep_state": BY_ENGINE | {"sleep_state"},
    "lightvllm:engine_up": BY_ENGINE,
}
COUNTERS = {
    "vllm:prefix_cache_queries": BY_ENGINE,
    "vllm:prefix_cache_hits": BY_ENGINE,
    "vllm:gpu_prefix_cache_queries": BY_ENGINE,
    "vllm:gpu_prefix_cache_hits": BY_ENGINE,
    "vllm:num_preemptions": BY_ENGINE,
    "vllm:prompt_tokens": BY_ENGINE,
    "vllm:prompt_tokens_cached": BY_ENGINE,
    "vllm:prompt_tokens_by_source": BY_ENGINE | {"source"},
    "vllm:generation_tokens": BY_ENGINE,
    "vllm:request_success": BY_ENGINE | {"finished_reason"},
    "lightvllm:engine_restarts": BY_ENGINE,
    "lightvllm:recovered_requests": BY_ENGINE,
    "lightvllm:failed_requests": BY_ENGINE,
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": FIRST_TOKEN,
    "vllm:inter_token_latency_seconds": INTER_TOKEN,
    "vllm:time_per_output_token_seconds": INTER_TOKEN,
    "vllm:request_time_per_output_token_seconds": INTER_TOKEN,
    "vllm:e2e_request_latency_seconds": SECONDS,
    "vllm:request_queue_time_seconds": SECONDS,
    "vllm:request_inference_time_seconds": SECONDS,
    "vllm:request_prefill_time_seconds": SECONDS,
    "vllm:request_decode_time_seconds": SECONDS,
    "vllm:request_prompt_tokens": TOKENS,
    "vllm:request_generation_tokens": TOKENS,
    "vllm:request_max_num_generation_tokens": TOKENS,
    "vllm:request_params_max_tokens": TOKENS,
    "vllm:request_prefill_kv_computed_tokens": TOKENS,
    "vllm:request_params_n": "1.0 2.0 5.0 10.0 20.0",
    "vllm:iteration_tokens_total": "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0",
}

# Every series that the queries of vLLM's published Grafana dashboards name (overview, service status, performance and
# query statistics, and the one of its Prometheus example).
DASHBOARD_SERIES = """
    vllm:e2e_request_latency_seconds_bucket vllm:e2e_request_latency_seconds_count vllm:e2e_request_latency_seconds_sum
    vllm:engine_sleep_state{sleep_state="awake"} vllm:generation_tokens_total vllm:inter_token_latency_seconds_bucket
    vllm:inter_token_latency_seconds_count vllm:inter_token_latency_seconds_sum vllm:iteration_tokens_total_bucket
    vllm:iteration_tokens_total_count vllm:iteration_tokens_total_sum
    vllm:kv_cache_usage_perc vllm:num_preemptions_total
    vllm:num_requests_running vllm:num_requests_waiting vllm:num_requests_waiting_by_reason{reason="capacity"}
    vllm:num_requests_waiting_by_reason{reason="deferred"} vllm:prefix_cache_hits_total vllm:prefix_cache_queries_total
    vllm:prompt_tokens_cached_total vllm:prompt_tokens_total vllm:prompt_tokens_by_source_total{source="local_compute"}
    vllm:prompt_tokens_by_source_total{source="local_cache_hit"}
    vllm:prompt_tokens_by_source_total{source="external_kv_transfer"} vllm:request_decode_time_seconds_count
    vllm:request_decode_time_seconds_sum vllm:request_generation_tokens_bucket vllm:request_generation_tokens_count
    vllm:request_generation_tokens_sum vllm:request_max_num_generation_tokens_sum
    vllm:request_prefill_time_seconds_count
    vllm:request_prefill_time_seconds_sum vllm:request_prompt_tokens_bucket vllm:request_prompt_tokens_count
    vllm:request_prompt_tokens_sum vllm:request_queue_time_seconds_bucket vllm:request_queue_time_seconds_count
    vllm:request_queue_time_seconds_sum vllm:request_success_total{finished_reason="error"}
    vllm:request_time_per_output_token_seconds_bucket{le="0.1"} vllm:request_time_per_output_token_seconds_count
    vllm:request_time_per_output_token_seconds_sum vllm:time_to_first_token_seconds_bucket{le="1.0"}
    vllm:time_to_first_token_seconds_count vllm:time_to_first_token_seconds_sum
    http_requests_total{status="2xx"} http_request_duration_seconds_sum http_request_duration_seconds_count
"""


def make_metrics() -> Metrics:
    metrics = Metrics("some/model")
    limits = SchedulerConfig(num_blocks=300, max_model_len=1500, block_size=16)
    metrics.on_ready(EngineReady(scheduler=limits, kv_cache="", device="cpu", dtype="float32"))
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    page, content_type = metrics.render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return {family.name: family for family in parse_text(page.decode())}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    """The one sample of this name whose labels include the given ones."""
    samples = [s for family in families(metrics).values() for s in family.samples if s.name == name]
    found = [s.value for s in samples if labels.items() <= s.labels.items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def report(
    queries: int = 0,
    hits: int = 0,
    preemptions: int = 0,
    *,
    prompt_tokens: int = 0,
    output_tokens: int = 0,
    running: int = 0,
    waiting: int = 0,
    used_blocks: int = 0,
) -> StepReport:
    stats = EngineStats(
        num_running=running,
        num_waiting=waiting,
        num_blocks=300,
        num_used_blocks=used_blocks,
        peak_num_used_blocks=used_blocks,
        prefix_cache_queries=queries,
        prefix_cache_hits=hits,
        num_preemptions=preemptions,
    )
    return StepReport([], stats, num_prompt_tokens=prompt_tokens, num_output_tokens=output_tokens, seconds=0.01)


def record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": "cmpl-1",
        "params": SamplingParams(max_tokens=100),
        "num_prompt_tokens": 40,
        "num_cached_tokens": 16,
        "num_output_tokens": [11],
        "finish_reasons": ["stop"],
        "arrival_time": 100.0,
        "first_scheduled_time": 100.25,
        "first_token_time": 101.0,
        "last_token_time": 103.0,
        "finished_time": 103.5,
    }
    return RequestRecord(**values | changes)


def test_every_name_has_vllms_type_labels_and_buckets() -> None:
    metrics = make_metrics()
    found = families(metrics)
    types = dict.fromkeys(GAUGES, "gauge") | dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(HISTOGRAMS, "histogram")
    for name, kind in types.items():
        assert found[name].type == kind, name
        assert found[name].samples, f"{name} has no value before the first request"
        for sample in found[name].samples:
            assert sample.labels["model_name"] == "some/model"
            assert sample.labels["engine"] == "0"
    for name, labels in (GAUGES | COUNTERS).items():
        assert all(sample.labels.keys() == labels for sample in found[name].samples), name
    for name in COUNTERS:
        assert {sample.name for sample in found[name].samples} == {f"{name}_total"}
    for name, buckets in HISTOGRAMS.items():
        bounds = [sample.labels["le"] for sample in found[name].samples if sample.name == f"{name}_bucket"]
        assert bounds == [*buckets.split(), "+Inf"], name


def test_nothing_else_is_said_of_the_engine() -> None:
    """A name that is added belongs into the tables above; one that would be made up (LoRA, speculation) does not."""
    known = {*GAUGES, *COUNTERS, *HISTOGRAMS, "vllm:cache_config_info"}
    found = {name for name in families(make_metrics()) if name.startswith(("vllm:", "lightvllm:"))}
    assert {name for name in found if not name.endswith("_created")} == known


def test_reasons_and_states_are_there_from_the_start() -> None:
    found = families(make_metrics())

    def values_of(name: str, label: str) -> dict[str, float]:
        return {sample.labels[label]: sample.value for sample in found[name].samples}

    assert values_of("vllm:request_success", "finished_reason") == dict.fromkeys(
        ("stop", "length", "abort", "error"), 0
    )
    assert values_of("vllm:engine_sleep_state", "sleep_state") == {
        "awake": 1,
        "weights_offloaded": 0,
        "discard_all": 0,
    }


def test_the_page_tells_of_the_process_and_the_interpreter() -> None:
    found = families(make_metrics())
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_info", "python_gc_collections"} <= set(
        found
    )


def test_metrics_do_not_share_anything() -> None:
    one, other = make_metrics(), make_metrics()
    one.on_finish(record())
    assert value(one, "vllm:prompt_tokens_total") == 40
    assert value(other, "vllm:prompt_tokens_total") == 0
    assert "vllm:prompt_tokens" not in REGISTRY._names_to_collectors


def test_a_scripted_run() -> None:
    metrics = make_metrics()
    metrics.on_step(report(40, 16, prompt_tokens=24, output_tokens=1, running=1, waiting=2, used_blocks=75))
    assert value(metrics, "vllm:num_requests_running") == 1
    assert value(metrics, "vllm:num_requests_waiting") == 2
    assert value(metrics, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(metrics, "vllm:num_requests_waiting_by_reason", reason="deferred") == 0
    assert value(metrics, "vllm:kv_cache_usage_perc") == value(metrics, "vllm:gpu_cache_usage_perc") == 0.25

    metrics.on_first_token(1.0)
    for _ in range(10):
        metrics.on_step(report(40, 16, 1, output_tokens=1))
        metrics.on_inter_token(0.2)
    metrics.on_step(report(40, 16, 1))  # nothing was computed: not a step to make statistics of
    metrics.on_finish(record())
    assert value(metrics, "vllm:prefix_cache_queries_total") == 40
    assert value(metrics, "vllm:prefix_cache_hits_total") == 16
    assert value(metrics, "vllm:gpu_prefix_cache_queries_total") == 40
    assert value(metrics, "vllm:gpu_prefix_cache_hits_total") == 16
    assert value(metrics, "vllm:num_preemptions_total") == 1
    assert value(metrics, "vllm:generation_tokens_total") == 11
    assert value(metrics, "vllm:iteration_tokens_total_count") == 11
    assert value(metrics, "vllm:iteration_tokens_total_sum") == 25 + 10
    assert value(metrics, "vllm:iteration_tokens_total_bucket", le="16.0") == 10

    assert value(metrics, "vllm:prompt_tokens_total") == 40
    assert value(metrics, "vllm:prompt_tokens_cached_total") == 16
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_compute") == 24
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 16
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 0
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1

    sums = {
        "time_to_first_token_seconds": 1.0,
        "inter_token_latency_seconds": 2.0,
        "time_per_output_token_seconds": 2.0,
        "request_time_per_output_token_seconds": 2.0 / 10,
        "e2e_request_latency_seconds": 3.5,
        "request_queue_time_seconds": 0.25,
        "request_prefill_time_seconds": 0.75,
        "request_decode_time_seconds": 2.0,
        "request_inference_time_seconds": 2.75,
        "request_prompt_tokens": 40,
        "request_generation_tokens": 11,
        "request_max_num_generation_tokens": 11,
        "request_params_max_tokens": 100,
        "request_params_n": 1,
        "request_prefill_kv_computed_tokens": 24,
    }
    for name, expected in sums.items():
        assert value(metrics, f"vllm:{name}_sum") == pytest.approx(expected), name
        assert value(metrics, f"vllm:{name}_count") == (10 if name in HISTOGRAM_PER_TOKEN else 1), name
    assert value(metrics, "vllm:inter_token_latency_seconds_bucket", le="0.15") == 0
    assert value(metrics, "vllm:inter_token_latency_seconds_bucket", le="0.2") == 10
    assert value(metrics, "vllm:request_prompt_tokens_bucket", le="20.0") == 0
    assert value(metrics, "vllm:request_prompt_tokens_bucket", le="50.0") == 1


HISTOGRAM_PER_TOKEN = {"inter_token_latency_seconds", "time_per_output_token_seconds"}


def test_a_request_of_several_completions_counts_once() -> None:
    metrics = make_metrics()
    params = SamplingParams(n=3, max_tokens=None)
    metrics.on_finish(
        record(
            params=params, num_output_tokens=[4, 9, 2], finish_reasons=["stop", "length", "stop"], num_cached_tokens=0
        )
    )
    assert value(metrics, "vllm:prompt_tokens_total") == 40
    assert value(metrics, "vllm:request_prompt_tokens_count") == 1
    assert value(metrics, "vllm:request_generation_tokens_sum") == 15
    assert value(metrics, "vllm:request_max_num_generation_tokens_sum") == 9
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == 2.0 / 8
    assert value(metrics, "vllm:request_params_n_sum") == 3
    assert value(metrics, "vllm:request_params_max_tokens_count") == 0
    assert value(metrics, "vllm:request_success_total", finished_reason="length") == 1
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 0


@pytest.mark.parametrize(
    ("reasons", "counted"),
    [(["stop", "error"], "error"), (["abort", "length"], "abort"), (["stop", "length"], "length"), (["stop"], "stop")],
)
def test_the_reason_that_tells_most_is_counted(reasons: list[str], counted: str) -> None:
    metrics = make_metrics()
    metrics.on_finish(record(finish_reasons=reasons, num_output_tokens=[1] * len(reasons)))
    samples = families(metrics)["vllm:request_success"].samples
    assert {s.labels["finished_reason"]: s.value for s in samples if s.value} == {counted: 1}
    assert value(metrics, "lightvllm:failed_requests_total") == (counted == "error")


def test_a_request_that_never_ran_has_no_phases_and_no_tokens() -> None:
    metrics = make_metrics()
    metrics.on_finish(
        record(
            first_scheduled_time=None,
            first_token_time=None,
            last_token_time=None,
            num_output_tokens=[0],
            finish_reasons=["abort"],
        )
    )
    assert value(metrics, "vllm:prompt_tokens_total") == 0
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 1
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "inference_time_seconds"):
        assert value(metrics, f"vllm:request_{name}_count") == 0
    for name in ("prompt_tokens", "generation_tokens", "time_per_output_token_seconds"):
        assert value(metrics, f"vllm:request_{name}_count") == 0


def test_a_single_token_takes_no_time_per_output_token() -> None:
    metrics = make_metrics()
    metrics.on_finish(record(num_output_tokens=[1], last_token_time=101.0))
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count") == 1
    assert value(metrics, "vllm:request_time_per_output_token_seconds_sum") == 0


def test_counters_never_go_back_when_the_engine_does() -> None:
    metrics = make_metrics()
    metrics.on_step(report(100, 50, 3, running=8, used_blocks=30))
    metrics.on_crash(num_recovered=8)
    assert value(metrics, "lightvllm:engine_up") == 0
    assert value(metrics, "lightvllm:engine_restarts_total") == 1
    assert value(metrics, "lightvllm:recovered_requests_total") == 8
    assert value(metrics, "vllm:num_requests_running") == 0
    assert value(metrics, "vllm:num_requests_waiting") == 8
    assert value(metrics, "vllm:kv_cache_usage_perc") == 0
    assert value(metrics, "vllm:prefix_cache_queries_total") == 100

    limits = SchedulerConfig(num_blocks=200, max_model_len=1500)
    metrics.on_ready(EngineReady(scheduler=limits, kv_cache="", device="cpu", dtype="float32"))
    assert value(metrics, "lightvllm:engine_up") == 1
    metrics.on_step(report(120, 20, 1))  # more queries than before the crash, and all of them new
    assert value(metrics, "vllm:prefix_cache_queries_total") == 220
    assert value(metrics, "vllm:prefix_cache_hits_total") == 70
    assert value(metrics, "vllm:num_preemptions_total") == 4
    metrics.on_step(report(5, 0, 0))  # again from 0, and nobody said that it crashed
    assert value(metrics, "vllm:prefix_cache_queries_total") == 225
    assert value(metrics, "vllm:prefix_cache_hits_total") == 70
    metrics.on_crash(num_recovered=2)
    assert value(metrics, "lightvllm:engine_restarts_total") == 2
    assert value(metrics, "lightvllm:recovered_requests_total") == 10


def test_cache_settings_are_labels() -> None:
    metrics = make_metrics()
    assert [s.labels for s in families(metrics)["vllm:cache_config_info"].samples] == [
        {
            "block_size": "16",
            "cache_dtype": "float32",
            "enable_prefix_caching": "True",
            "engine": "0",
            "kv_cache_max_concurrency": "3.2",
            "kv_cache_size_tokens": "4800",
            "num_gpu_blocks": "300",
            "prefix_caching_hash_algo": "xxhash",
        }
    ]
    limits = SchedulerConfig(num_blocks=200, max_model_len=1500)
    metrics.on_ready(EngineReady(scheduler=limits, kv_cache="", device="cpu", dtype="float32"))
    assert value(metrics, "vllm:cache_config_info", num_gpu_blocks="200") == 1
    assert len(families(metrics)["vllm:cache_config_info"].samples) == 1


def test_vllms_dashboards_find_their_series() -> None:
    metrics = make_metrics()
    metrics.on_http("/v1/completions", "POST", 200, 0.3)
    samples = [sample for family in families(metrics).values() for sample in family.samples]
    for series in DASHBOARD_SERIES.split():
        name, _, labels = series.rstrip("}").partition("{")
        label, _, quoted = labels.partition("=")
        assert [s for s in samples if s.name == name and s.labels.get(label, "") == quoted.strip('"')], series


def test_a_model_name_cannot_break_the_page() -> None:
    metrics = Metrics('a"b\\c\nd')
    assert value(metrics, "vllm:num_requests_running", model_name='a"b\\c\nd') == 0


def test_observers_all_hear_everything() -> None:
    calls: list[tuple[str, Any]] = []

    class Spy(EngineObserver):
        def __getattribute__(self, name: str) -> Callable[[Any], None]:
            return lambda argument: calls.append((name, argument))

    group = Observers(Spy(), Spy())
    said = {
        "on_ready": "ready",
        "on_add": "cmpl-1",
        "on_step": "report",
        "on_first_token": 1.0,
        "on_inter_token": 2.0,
        "on_finish": "record",
        "on_crash": 3,
    }
    for name, argument in said.items():
        getattr(group, name)(argument)
    assert calls == [call for call in said.items() for _ in range(2)]
    assert set(said) == {name for name in vars(EngineObserver) if name.startswith("on_")}


# ---- HTTP


def make_app() -> FastAPI:
    app, router = FastAPI(), APIRouter()

    @router.get("/models/{model_id:path}")
    async def model(model_id: str) -> str:
        return model_id

    @router.post("/completions")
    async def complete() -> None:
        raise RuntimeError("broken")

    @app.get("/health")
    async def health() -> None: ...

    app.include_router(router, prefix="/v1")
    return app


def http_counts(*requests: tuple[str, str]) -> dict[tuple[str, str, str], float]:
    """(method, handler, status) -> how many of the requests were counted there."""
    metrics = make_metrics()

    async def send() -> None:
        transport = ASGITransport(app=HttpMetrics(make_app(), metrics), raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://test") as client:
            for method, path in requests:
                await client.request(method, path)

    asyncio.run(send())
    counted = {
        (s.labels["method"], s.labels["handler"], s.labels["status"]): s.value
        for s in families(metrics)["http_requests"].samples
        if s.name == "http_requests_total"
    }
    timed = [s.value for s in families(metrics)["http_request_duration_seconds"].samples if s.name.endswith("_count")]
    assert sum(timed) == sum(counted.values())
    return counted


def test_http_requests_are_counted_by_endpoint() -> None:
    assert http_counts(("GET", "/v1/models/a/b"), ("GET", "/v1/models/v1"), ("GET", "/v1/models/")) == {
        ("GET", "/v1/models/{model_id}", "2xx"): 2,
        ("GET", "/v1/models/", "2xx"): 1,
    }


def test_http_errors_are_counted() -> None:
    assert http_counts(("POST", "/v1/completions"), ("PUT", "/v1/completions")) == {
        ("POST", "/v1/completions", "5xx"): 1,
        ("PUT", "/v1/completions", "4xx"): 1,
    }


def test_a_client_cannot_make_new_series() -> None:
    paths = [("GET", f"/{i}") for i in range(5)]
    methods = [(f"METHOD{i}", "/v1/completions") for i in range(5)]
    assert http_counts(*paths, *methods) == {("GET", "none", "4xx"): 5, ("other", "/v1/completions", "4xx"): 5}


def test_probes_are_not_counted() -> None:
    assert http_counts(("GET", "/health"), ("GET", "/health")) == {}


def test_a_client_that_left_before_an_answer_is_no_error_of_the_server() -> None:
    metrics = make_metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = app
        if scope["path"] == "/broken":
            raise RuntimeError("broken")

    async def nothing(*_: Any) -> Any: ...

    async def serve() -> None:
        served = HttpMetrics(app, metrics)
        await served({"type": "http", "method": "POST", "path": "/left"}, nothing, nothing)
        with pytest.raises(RuntimeError, match="broken"):
            await served({"type": "http", "method": "POST", "path": "/broken"}, nothing, nothing)

    asyncio.run(serve())
    assert value(metrics, "http_requests_total", handler="/left", status="4xx") == 1
    assert value(metrics, "http_requests_total", handler="/broken", status="5xx") == 1
