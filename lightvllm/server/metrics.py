"""What `/metrics` says, in Prometheus' format: vLLM's names, types, labels and buckets, so that its dashboards work
unchanged, and a few figures of our own.

A request counts once, whatever its `n`: `prompt_tokens` is the sum of what the responses' `usage` says, and so are the
histograms of requests. Where its completions ended differently, `request_success` has the reason that tells most.

Not there: `lora_requests_info` and `spec_decode_*`, as this engine has neither adapters nor speculation, and what vLLM
says of images and of caches on other machines.
"""

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightvllm.engine.messages import EngineReady, StepReport
from lightvllm.engine.observer import EngineObserver, RequestRecord
from lightvllm.engine.stats import EngineStats

# Seconds of a whole request and of its phases, to the first token, and between two tokens.
_REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_COMPLETIONS = (1, 2, 5, 10, 20)
_HTTP_SECONDS = (0.1, 0.5, 1.0)

# The reasons to end, those that tell most first.
_FINISH_REASONS = ("error", "abort", "length", "stop")

# Who asks for these is a machine that looks whether the server lives; vLLM does not count them, either.
_PROBES = ("/metrics", "/health", "/load", "/ping", "/version")
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
_NO_RESPONSE = 499  # what nginx writes when the client went away before it had an answer

_ENGINE_COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions")


class Metrics(EngineObserver):
    """Listens to the engine and renders what it heard.

    Args:
        model_name: the label `model_name`: the first name the model is served under.
    """

    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, "0")
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._engine_counts = dict.fromkeys(_ENGINE_COUNTERS, 0)
        self._make_engine_metrics()
        self._make_request_metrics()
        self._make_own_metrics()
        older: dict[str, Collector] = {
            "gpu_cache_usage_perc": self._kv_cache_usage_family,
            "gpu_prefix_cache_queries": self._engine_counter_families["prefix_cache_queries"],
            "gpu_prefix_cache_hits": self._engine_counter_families["prefix_cache_hits"],
            "time_per_output_token_seconds": self._inter_token_family,
        }
        self._registry.register(_OlderNames({f"vllm:{name}": family for name, family in older.items()}))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["model_name", "engine", *labels], registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ["model_name", "engine", *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(name, text, ["model_name", "engine"], buckets=tuple(buckets), registry=self._registry)

    def _make_engine_metrics(self) -> None:
        """What steps tell."""
        labels = self._labels
        running = self._gauge("vllm:num_requests_running", "Requests that own cache blocks.")
        waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait for room, preempted ones included.")
        by_reason = self._gauge(
            "vllm:num_requests_waiting_by_reason", "Waiting requests by what they wait for: room, always.", "reason"
        )
        usage = self._gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that requests use: 1 is all of it.")
        self._num_running = running.labels(*labels)
        self._num_waiting = (waiting.labels(*labels), by_reason.labels(*labels, "capacity"))
        by_reason.labels(*labels, "deferred")
        self._kv_cache_usage_family = usage
        self._kv_cache_usage = usage.labels(*labels)

        texts = {
            "prefix_cache_queries": "Tokens that were looked up in the prefix cache.",
            "prefix_cache_hits": "Tokens that the prefix cache had.",
            "num_preemptions": "Times that a request gave its cache blocks up to an earlier one.",
        }
        self._engine_counter_families = {name: self._counter(f"vllm:{name}", text) for name, text in texts.items()}
        self._engine_counters = {name: family.labels(*labels) for name, family in self._engine_counter_families.items()}
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens that were generated.").labels(*labels)
        self._iteration_tokens = self._histogram(
            "vllm:iteration_tokens_total", "Tokens of a step, of prompts and generated.", _STEP_TOKENS
        ).labels(*labels)

        sleep_state = self._gauge(
            "vllm:engine_sleep_state", "Whether the engine is awake, which it always is.", "sleep_state"
        )
        for state, value in {"awake": 1, "weights_offloaded": 0, "discard_all": 0}.items():
            sleep_state.labels(*labels, state).set(value)

    def _make_request_metrics(self) -> None:
        """What requests tell, while they run and when they end; those that count tokens are made in `on_ready`."""
        labels = self._labels
        self._prompt_tokens = self._counter(
            "vllm:prompt_tokens", "Tokens of the prompts of requests that have ended, cached ones included."
        ).labels(*labels)
        self._prompt_tokens_cached = self._counter(
            "vllm:prompt_tokens_cached", "Those of prompt_tokens that the prefix cache had."
        ).labels(*labels)
        by_source = self._counter("vllm:prompt_tokens_by_source", "prompt_tokens, by where they came from.", "source")
        self._prompt_tokens_by_source = [by_source.labels(*labels, s) for s in ("local_compute", "local_cache_hit")]
        by_source.labels(*labels, "external_kv_transfer")
        success = self._counter("vllm:request_success", "Requests that have ended, by why.", "finished_reason")
        self._request_success = {reason: success.labels(*labels, reason) for reason in _FINISH_REASONS}

        self._inter_token_family = self._histogram(
            "vllm:inter_token_latency_seconds", "Seconds between two tokens of a completion.", _INTER_TOKEN_SECONDS
        )
        self._inter_token = self._inter_token_family.labels(*labels)
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Seconds from arrival to the first token.", _FIRST_TOKEN_SECONDS
        ).labels(*labels)
        self._time_per_output_token = self._histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean seconds per token of a request after its first; 0 if it has but one.",
            _INTER_TOKEN_SECONDS,
        ).labels(*labels)
        phases = {
            "e2e_request_latency": "Seconds from arrival to end.",
            "request_queue_time": "Seconds from arrival to the first step.",
            "request_prefill_time": "Seconds from the first step to the first token.",
            "request_decode_time": "Seconds from the first token to the last.",
            "request_inference_time": "Seconds from the first step to the last token.",
        }
        self._seconds_of = {
            name: self._histogram(f"vllm:{name}_seconds", text, _REQUEST_SECONDS).labels(*labels)
            for name, text in phases.items()
        }
        self._params_n = self._histogram(
            "vllm:request_params_n", "Completions that a request asked for.", _COMPLETIONS
        ).labels(*labels)
        self._tokens_of: dict[str, Histogram] = {}
        self._cache_config: Gauge | None = None

    def _make_own_metrics(self) -> None:
        labels = self._labels
        self._engine_up = self._gauge("lightvllm:engine_up", "Whether the engine process works.").labels(*labels)
        self._restarts = self._counter(
            "lightvllm:engine_restarts", "Times that the engine process died or hung, and was started again."
        ).labels(*labels)
        self._recovered = self._counter(
            "lightvllm:recovered_requests", "Requests that went on after a restart of the engine, each time."
        ).labels(*labels)
        self._failed = self._counter(
            "lightvllm:failed_requests", "Requests that ended by an error of the server's."
        ).labels(*labels)
        self._http_requests = Counter(
            "http_requests",
            "HTTP requests by method, class of status and endpoint.",
            ["method", "status", "handler"],
            registry=self._registry,
        )
        self._http_seconds = Histogram(
            "http_request_duration_seconds",
            "Seconds of an HTTP request until all of its response is sent.",
            ["method", "handler"],
            buckets=_HTTP_SECONDS,
            registry=self._registry,
        )

    def on_ready(self, ready: EngineReady) -> None:
        limits = ready.scheduler
        if not self._tokens_of:
            texts = {
                "request_prompt_tokens": "Tokens of a prompt.",
                "request_generation_tokens": "Tokens that a request generated, all of its completions together.",
                "request_max_num_generation_tokens": "Tokens of the longest completion of a request.",
                "request_params_max_tokens": "max_tokens, of the requests that have one.",
                "request_prefill_kv_computed_tokens": "Tokens of a prompt that the prefix cache did not have.",
            }
            for name, text in texts.items():
                histogram = self._histogram(f"vllm:{name}", text, _token_buckets(limits.max_model_len))
                self._tokens_of[name] = histogram.labels(*self._labels)

        num_tokens = limits.num_blocks * limits.block_size
        settings = {
            "block_size": limits.block_size,
            "cache_dtype": ready.dtype,
            "enable_prefix_caching": limits.enable_prefix_caching,
            "engine": self._labels[1],
            "kv_cache_max_concurrency": num_tokens / limits.max_model_len,
            "kv_cache_size_tokens": num_tokens,
            "num_gpu_blocks": limits.num_blocks,  # vLLM's name for the blocks on any device
            "prefix_caching_hash_algo": "xxhash",
        }
        if self._cache_config is None:
            self._cache_config = Gauge(
                "vllm:cache_config_info", "The KV cache's settings.", list(settings), registry=self._registry
            )
        self._cache_config.clear()  # a restarted engine may have found less memory
        self._cache_config.labels(**settings).set(1)
        self._engine_up.set(1)

    def on_step(self, report: StepReport) -> None:
        stats = report.stats
        self._set_gauges(stats.num_running, stats.num_waiting, stats.kv_cache_usage)
        self._advance_engine_counters(stats)
        self._generation_tokens.inc(report.num_output_tokens)
        if num_tokens := report.num_prompt_tokens + report.num_output_tokens:
            self._iteration_tokens.observe(num_tokens)

    def _set_gauges(self, num_running: int, num_waiting: int, kv_cache_usage: float) -> None:
        self._num_running.set(num_running)
        for gauge in self._num_waiting:
            gauge.set(num_waiting)
        self._kv_cache_usage.set(kv_cache_usage)

    def _advance_engine_counters(self, stats: EngineStats) -> None:
        """Ours never go back: what the engine counted is added to them, also when it counts from 0 again."""
        for name, counter in self._engine_counters.items():
            count, before = getattr(stats, name), self._engine_counts[name]
            counter.inc(count - before if count >= before else count)
            self._engine_counts[name] = count

    def on_first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def on_inter_token(self, seconds: float) -> None:
        self._inter_token.observe(seconds)

    def on_finish(self, record: RequestRecord) -> None:
        reason = min(record.finish_reasons, key=_FINISH_REASONS.index)
        self._request_success[reason].inc()
        if reason == "error":
            self._failed.inc()
        self._params_n.observe(record.params.n)
        self._count_tokens(record)
        self._time_phases(record)

    def _count_tokens(self, record: RequestRecord) -> None:
        """Of a request that never ran, no token was processed: vLLM's counters leave it out, too."""
        if record.params.max_tokens is not None:
            self._tokens_of["request_params_max_tokens"].observe(record.params.max_tokens)
        if record.first_scheduled_time is None:
            return
        num_computed = record.num_prompt_tokens - record.num_cached_tokens
        self._prompt_tokens.inc(record.num_prompt_tokens)
        self._prompt_tokens_cached.inc(record.num_cached_tokens)
        for counter, count in zip(self._prompt_tokens_by_source, (num_computed, record.num_cached_tokens), strict=True):
            counter.inc(count)
        self._tokens_of["request_prompt_tokens"].observe(record.num_prompt_tokens)
        self._tokens_of["request_prefill_kv_computed_tokens"].observe(num_computed)
        self._tokens_of["request_generation_tokens"].observe(sum(record.num_output_tokens))
        self._tokens_of["request_max_num_generation_tokens"].observe(max(record.num_output_tokens))

    def _time_phases(self, record: RequestRecord) -> None:
        """Only the phases that the request came to."""
        arrival, scheduled = record.arrival_time, record.first_scheduled_time
        first, last = record.first_token_time, record.last_token_time
        ends = {
            "e2e_request_latency": (arrival, record.finished_time),
            "request_queue_time": (arrival, scheduled),
            "request_prefill_time": (scheduled, first),
            "request_decode_time": (first, last),
            "request_inference_time": (scheduled, last),
        }
        for name, (start, end) in ends.items():
            if start is not None and end is not None:
                self._seconds_of[name].observe(end - start)
        if first is not None and last is not None:
            # The completions of a request advance side by side, so the longest is the measure of all.
            num_later = max(record.num_output_tokens) - 1
            self._time_per_output_token.observe((last - first) / num_later if num_later > 0 else 0.0)

    def on_crash(self, num_recovered: int) -> None:
        self._engine_up.set(0)
        self._restarts.inc()
        self._recovered.inc(num_recovered)
        self._engine_counts = dict.fromkeys(_ENGINE_COUNTERS, 0)
        self._set_gauges(0, num_recovered, 0.0)  # until the new engine has them

    def on_http(self, handler: str, method: str, status: int, seconds: float) -> None:
        """An HTTP request was answered.

        Args:
            handler: the endpoint's path, of which there are few: with names in place of parameters.
            method: of which there are few, too.
        """
        self._http_requests.labels(method, f"{status // 100}xx", handler).inc()
        self._http_seconds.labels(method, handler).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The page and its content type: the text format, whatever is asked for.

        Every Prometheus reads it, and the library's OpenMetrics has no colons in names.
        """
        return generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4


class _OlderNames(Collector):
    """The same figures under the names that vLLM gave them before."""

    def __init__(self, families: dict[str, Collector]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, family in self._families.items():
            for metric in family.collect():
                renamed = Metric(name, f"Older name of {metric.name}.", metric.type)
                for sample in metric.samples:
                    suffix = sample.name.removeprefix(metric.name)
                    renamed.samples.append(sample._replace(name=name + suffix))
                yield renamed


class HttpMetrics:
    """ASGI middleware that tells `Metrics.on_http` of each request but those of probes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _NO_RESPONSE
        start = time.perf_counter()

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except Exception:
            status = 500 if status == _NO_RESPONSE else status
            raise
        finally:
            handler = _handler(scope, status)
            if handler not in _PROBES:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.on_http(handler, method, status, time.perf_counter() - start)


def _handler(scope: Scope, status: int) -> str:
    """The endpoint's path with names in place of parameters; "none" where there is no such endpoint.

    Read from what the router left in the scope, and not from the route: one that is included under a prefix does not
    know its whole path.
    """
    path, parameters = scope["path"], scope.get("path_params") or {}
    if "endpoint" not in scope or (status == 404 and not parameters):
        return "none"
    for name, value in parameters.items():
        if value != "":
            before, _, after = path.rpartition(str(value))
            path = f"{before}{{{name}}}{after}"
    return path


def _token_buckets(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to the number."""
    steps = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return [step for step in steps if step <= most]
