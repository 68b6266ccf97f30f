"""The tables of docs/configuration.md and docs/metrics.md, made from the code they describe."""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lightvllm.cli.flags import attribute_docs
from lightvllm.cli.serve import SERVER_DEFAULTS
from lightvllm.config import EngineConfig, ServerConfig
from lightvllm.engine.messages import EngineReady
from lightvllm.engine.scheduler_config import SchedulerConfig
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams
from lightvllm.server.metrics import Metrics

# Every metric of the engine and of its requests has these.
COMMON_LABELS = {"model_name", "engine"}


def all_tables() -> dict[str, str]:
    """The name in the page -> its rows."""
    return {
        "EngineConfig": _settings(EngineConfig, _help_of(EngineConfig)),
        "ServerConfig": _settings(ServerConfig, _help_of(ServerConfig)),
        "SamplingParams": _settings(SamplingParams, attribute_docs(SamplingParams)),
        "StructuredOutputsParams": _settings(StructuredOutputsParams, attribute_docs(StructuredOutputsParams)),
        "defaults of lightvllm serve": _server_defaults(),
        **{f"metrics of {prefix}": _metrics(prefix) for prefix in ("vllm", "lightvllm", "http")},
    }


def _help_of(options: type[Any]) -> dict[str, str]:
    return {field.name: field.metadata["help"] for field in dataclasses.fields(options)}


def _settings(options: type[Any], texts: dict[str, str]) -> str:
    rows = [
        (f"`{field.name}`", _type(field.type), _default(field), texts[field.name].removesuffix("."))
        for field in dataclasses.fields(options)
        if field.init
    ]
    return _table(("field", "type", "default", "meaning"), rows)


def _server_defaults() -> str:
    defaults = {field.name: field.default for field in dataclasses.fields(EngineConfig)}
    rows = [(f"`{name}`", f"`{value}`", f"`{defaults[name]}`") for name, value in SERVER_DEFAULTS.items()]
    return _table(("field", "in `lightvllm serve`", "elsewhere"), rows)


def _type(kind: Any) -> str:
    """A type in words: the values of a Literal, the kinds of a union."""
    if typing.get_origin(kind) is Literal:
        return ", ".join(f"`{_value(choice)}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(_type(part) for part in typing.get_args(kind))
    if kind is types.NoneType:
        return "`None`"
    return f"`{str(kind).replace('typing.', '') if typing.get_args(kind) else kind.__name__}`"


def _default(field: "dataclasses.Field[Any]") -> str:
    return "required" if field.default is dataclasses.MISSING else f"`{_value(field.default)}`"


def _value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _metrics(prefix: str) -> str:
    rows = []
    for metric in exported_metrics():
        if metric.name.replace(":", "_").split("_")[0] == prefix:
            labels = {name for sample in metric.samples for name in sample.labels} - COMMON_LABELS - {"le"}
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            rows.append((f"`{name}`", metric.type, ", ".join(sorted(labels)), metric.documentation.removesuffix(".")))
    return _table(("name", "type", "further labels", "meaning"), rows)


def exported_metrics() -> list[Metric]:
    """All that `/metrics` has once the engine is ready and a request was answered."""
    metrics = Metrics("model")
    limits = SchedulerConfig(num_blocks=64, max_model_len=1024)
    metrics.on_ready(EngineReady(limits, kv_cache="", device="cpu", dtype="bfloat16"))
    metrics.on_http("/v1/completions", "POST", 200, 0.1)
    page, _ = metrics.render()
    return [metric for metric in parse_text(page.decode()) if not metric.name.endswith("_created")]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
