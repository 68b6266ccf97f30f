"""`lightvllm bench serve`: load on a server, this one or any other that speaks OpenAI's protocol."""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightvllm.cli.measurement import add_json_flag, add_number, print_measurement, write_json
from lightvllm.cli.parser import Parser, add_verb
from lightvllm.config import DEFAULT_MODEL

if TYPE_CHECKING:
    from lightvllm.bench.load.dataset import LoadRequest
    from lightvllm.bench.load.run import Run
    from lightvllm.client import Model

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
DESCRIPTION = """
Sends streaming requests to a server that runs, and reports what its users would see. Flags and the names in the JSON
are those of vLLM's `bench serve`. The exit code is 1 if a request failed.

  lightvllm bench serve --num-prompts 200 --random-input-len 256 --ignore-eos
  lightvllm bench serve --base-url http://host:8000 --request-rate 4 --goodput ttft:200 tpot:50
  lightvllm bench serve --endpoint /v1/chat/completions --dataset-name sharegpt --dataset-path ShareGPT_V3.json
  lightvllm bench serve --duration 60 --max-concurrency 64

Random prompts go to /v1/completions as token ids, which makes them exactly as long as asked for and costs the server no
tokenization, and to /v1/chat/completions as text. Tokens are counted by the server (its usage); where it does not count
them, each piece of output counts as one, and the report says for how many requests that was so."""
MAX_OPEN_FILES = 1 << 16
SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
}


def add_parser(kinds: "argparse._SubParsersAction[Parser]") -> None:
    """Add the measurement to `bench`."""
    parser = add_verb(kinds, "serve", run, "load on a server: throughput and latency", DESCRIPTION)
    _add_server_flags(parser.add_argument_group("server"))
    _add_load_flags(parser.add_argument_group("load"))
    _add_dataset_flags(parser.add_argument_group("data set"))
    _add_request_flags(parser.add_argument_group("requests", "what is not given is not sent: the server decides"))
    _add_report_flags(parser.add_argument_group("report"))
    add_json_flag(parser)


def _add_server_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", metavar="URL", help="address of the server (default: from --host and --port)")
    group.add_argument("--host", metavar="TEXT", default="127.0.0.1", help="(default: 127.0.0.1)")
    add_number(group, "--port", 8000, "of the server")
    group.add_argument("--endpoint", default=COMPLETIONS, choices=[COMPLETIONS, CHAT], help=f"(default: {COMPLETIONS})")
    group.add_argument("--model", metavar="TEXT", help="model to ask for (default: the first that the server lists)")
    group.add_argument("--api-key", metavar="TEXT", help="sent as a bearer token")
    group.add_argument("--header", metavar="NAME=VALUE", nargs="+", default=[], help="further headers")
    group.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="with tokenizer.json (default: the server's model, if it is a folder here)",
    )
    group.add_argument(
        "--request-timeout", type=float, default=3600.0, metavar="S", help="longest time of a request (default: 3600)"
    )


def _add_load_flags(group: argparse._ArgumentGroup) -> None:
    add_number(group, "--num-prompts", 1000, "requests to send")
    group.add_argument(
        "--request-rate",
        type=float,
        default=math.inf,
        metavar="X",
        help="requests a second (default: inf, all at once)",
    )
    group.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="X",
        help="how they come: 1 as a Poisson process (default), less in bursts, more evenly, inf at a beat",
    )
    group.add_argument("--max-concurrency", type=int, metavar="N", help="hold requests back while so many run")
    group.add_argument(
        "--duration",
        type=float,
        metavar="S",
        help="send requests for so long, the same ones again when all are sent, instead of each once",
    )
    add_number(group, "--num-warmups", 0, "requests before, one after the other, that do not count")
    add_number(group, "--seed", 0, "of prompts and arrival times")


def _add_dataset_flags(group: argparse._ArgumentGroup) -> None:
    names = ["random", "prefix_repetition", "sharegpt"]
    group.add_argument("--dataset-name", default="random", choices=names, help=f"{', '.join(names)} (default: random)")
    add_number(group, "--random-input-len", 1024, "random: tokens of a prompt")
    add_number(group, "--random-output-len", 128, "random: tokens to generate")
    group.add_argument(
        "--random-range-ratio",
        type=float,
        default=0.0,
        metavar="X",
        help="random: lengths vary by this part of themselves to either side (default: 0)",
    )
    add_number(group, "--random-prefix-len", 0, "random: tokens before these that all prompts share")
    add_number(group, "--prefix-repetition-num-prefixes", 10, "prefix_repetition: different prefixes")
    add_number(group, "--prefix-repetition-prefix-len", 256, "prefix_repetition: tokens of a prefix")
    add_number(group, "--prefix-repetition-suffix-len", 256, "prefix_repetition: tokens that each prompt adds")
    add_number(group, "--prefix-repetition-output-len", 128, "prefix_repetition: tokens to generate")
    group.add_argument("--dataset-path", metavar="FILE", help="sharegpt: a JSON file in the form of ShareGPT_V3")
    group.add_argument(
        "--sharegpt-output-len", type=int, metavar="N", help="sharegpt: tokens to generate (default: as in the file)"
    )


def _add_request_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--ignore-eos", action="store_true", help="generate as many tokens as asked for, come what may")
    for name, kind in SAMPLING.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, metavar="N" if kind is int else "X")
    group.add_argument("--extra-body", type=_json_object, default={}, metavar="JSON", help="further fields")


def _add_report_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--percentile-metrics",
        default="ttft,tpot,itl,e2el",
        metavar="NAME,...",
        help="of ttft, tpot, itl, e2el, client_queue_time (default: ttft,tpot,itl,e2el)",
    )
    group.add_argument("--metric-percentiles", default="99", metavar="X,...", help="(default: 99)")
    group.add_argument(
        "--goodput",
        nargs="+",
        metavar="NAME:MS",
        help="count the requests that keep these limits: ttft, tpot and e2el, in milliseconds",
    )
    group.add_argument("--save-result", action="store_true", help="write the JSON to a file")
    group.add_argument("--save-detailed", action="store_true", help="have each request in the JSON, too")
    group.add_argument("--result-dir", metavar="FOLDER", help="where to (default: here)")
    group.add_argument("--result-filename", metavar="FILE", help="what as (default: made of model, rate and time)")


def run(args: argparse.Namespace) -> int:
    """Run the measurement; the exit code."""
    from lightvllm.bench.load.metrics import count_errors, details, summarize
    from lightvllm.bench.load.report import load_text
    from lightvllm.client.calls import server_root

    metrics, percentiles, goodput = _report_choices(args)
    _check_load(args)
    url = server_root(args.base_url or f"http://{args.host}:{args.port}")
    model = _served_model(url, args)
    tokenizer_folder = args.tokenizer or _model_folder(model)
    requests = _requests(args, tokenizer_folder)
    load = _run(args, url, model.id, requests)
    record = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "base_url": url,
        "endpoint": args.endpoint,
        "model_id": model.id,
        "tokenizer_id": tokenizer_folder,
        "dataset_name": args.dataset_name,
        "num_prompts": args.num_prompts,
        "request_rate": args.request_rate if math.isfinite(args.request_rate) else "inf",
        "burstiness": args.burstiness if math.isfinite(args.burstiness) else "inf",
        "max_concurrency": args.max_concurrency,
        "seed": args.seed,
    }
    record |= summarize(load, metrics, percentiles, goodput)
    errors = count_errors(load)
    if args.save_detailed:
        record |= details(load)
    elif errors:
        record["errors"] = dict(errors)
    setting = f"{model.id} at {url}{args.endpoint}, {args.dataset_name} prompts"
    text = "\n".join([load_text(record), *(f"\n{number} failed: {error}" for error, number in errors)])
    print_measurement(args, record, setting + "\n", text)
    if args.save_result:
        rate = f"{args.request_rate:g}qps"
        name = args.result_filename or f"lightvllm-{rate}-{Path(model.id).name}-{record['date']}.json"
        write_json(os.path.join(args.result_dir or "", name), record, "--save-result")
    return 1 if record["failed"] else 0


def _report_choices(args: argparse.Namespace) -> tuple[list[str], list[float], dict[str, float] | None]:
    """What to report: metrics, percentiles, limits.

    Raises:
        ValueError: a flag that does not say it.
    """
    from lightvllm.bench.load.metrics import LIMITABLE, METRICS

    metrics = args.percentile_metrics.split(",")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"percentile_metrics: {name!r} is unknown, expected some of {', '.join(METRICS)}")
    try:
        percentiles = [float(text) for text in args.metric_percentiles.split(",")]
    except ValueError:
        percentiles = [math.nan]
    if not all(0 <= percent <= 100 for percent in percentiles):
        raise ValueError(f"metric_percentiles: {args.metric_percentiles!r} is no list of numbers from 0 to 100")
    if args.goodput is None:
        return metrics, percentiles, None
    goodput = {}
    for limit in args.goodput:
        name, _, milliseconds = limit.partition(":")
        try:
            goodput[name] = float(milliseconds)
        except ValueError:
            goodput[name] = math.nan
        if name not in LIMITABLE or not goodput[name] > 0:
            raise ValueError(f"goodput: {limit!r} is no limit such as ttft:200; names are {', '.join(LIMITABLE)}")
    return metrics, percentiles, goodput


def _check_load(args: argparse.Namespace) -> None:
    least = {"num_prompts": 1, "num_warmups": 0, "max_concurrency": 1}
    for name, bound in least.items():
        value = getattr(args, name)
        if value is not None and value < bound:
            raise ValueError(f"{name}: {value} is out of range, expected at least {bound}")
    if args.duration is not None and not args.duration > 0:
        raise ValueError(f"duration: {args.duration} is out of range, expected more than 0")
    if args.duration is not None and math.isinf(args.request_rate) and args.max_concurrency is None:
        raise ValueError("duration: needs --request-rate or --max-concurrency, else requests without end come at once")
    if (args.result_dir or args.result_filename) and not args.save_result:
        raise ValueError("result_dir, result_filename: only with --save-result")
    if args.dataset_path is not None and args.dataset_name != "sharegpt":
        raise ValueError("dataset_path: only with --dataset-name sharegpt")


def _served_model(url: str, args: argparse.Namespace) -> "Model":
    """The model to ask for; only what was named if the server lists none of that name."""
    from lightvllm.client import APIError, Client, Model

    if args.model is not None and args.tokenizer is not None:
        return Model(args.model)
    try:
        with Client(url, args.api_key) as client:
            models = client.models()
    except APIError as error:
        raise ValueError(f"base_url: {error}") from None
    if args.model is None and not models:
        raise ValueError(f"model: the server at {url} lists none; name one")
    named = [model for model in models if args.model in (None, model.id)]
    return named[0] if named else Model(args.model)


def _model_folder(model: "Model") -> str:
    folders = [Path(name) for name in (model.root, model.id) if name]
    if model.id == DEFAULT_MODEL.name:
        folders.append(DEFAULT_MODEL)
    for folder in folders:
        if (folder / "tokenizer.json").is_file():
            return str(folder)
    raise ValueError(f"tokenizer: the model {model.id!r} is no folder here; name one with its tokenizer.json")


def _requests(args: argparse.Namespace, tokenizer_folder: str) -> "list[LoadRequest]":
    """The data set's, those for the warm-up first."""
    from lightvllm.bench.load import dataset
    from lightvllm.engine.tokenizer import Tokenizer

    number = args.num_warmups + args.num_prompts
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    if args.dataset_name == "sharegpt":
        if args.dataset_path is None:
            raise ValueError("dataset_path: sharegpt needs it")
        output_len = args.sharegpt_output_len
        return dataset.sharegpt_requests(args.dataset_path, tokenizer, number, seed=args.seed, output_len=output_len)
    prompts = dataset.RandomPrompts(tokenizer, args.seed, as_text=args.endpoint == CHAT)
    if args.dataset_name == "prefix_repetition":
        return dataset.prefix_repetition_requests(
            prompts,
            number,
            num_prefixes=args.prefix_repetition_num_prefixes,
            prefix_len=args.prefix_repetition_prefix_len,
            suffix_len=args.prefix_repetition_suffix_len,
            output_len=args.prefix_repetition_output_len,
        )
    return dataset.random_requests(
        prompts,
        number,
        input_len=args.random_input_len,
        output_len=args.random_output_len,
        range_ratio=args.random_range_ratio,
        prefix_len=args.random_prefix_len,
    )


def _run(args: argparse.Namespace, url: str, model: str, requests: "list[LoadRequest]") -> "Run":
    import asyncio
    import itertools

    from tqdm import tqdm

    from lightvllm.bench.load.arrivals import arrival_times
    from lightvllm.bench.load.run import run_load
    from lightvllm.bench.load.stream import Target

    arrivals = arrival_times(args.request_rate, args.burstiness, args.seed)
    options = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    options |= ({"ignore_eos": True} if args.ignore_eos else {}) | args.extra_body
    bodies = [request.body(model, args.endpoint == CHAT, options) for request in requests]
    headers = {} if args.api_key is None else {"Authorization": f"Bearer {args.api_key}"}
    target = Target(url + args.endpoint, headers | dict(map(_header, args.header)), args.request_timeout)
    _allow_many_connections()

    async def run() -> "Run":
        warmups = await run_load(target, bodies[: args.num_warmups], itertools.repeat(0.0), max_concurrency=1)
        for outcome in warmups.outcomes:
            if outcome.error is not None:
                raise ValueError(f"the warm-up failed: {outcome.error}")
        total = args.num_prompts if args.duration is None else None
        with tqdm(total=total, desc="Requests", disable=None, leave=False) as bar:
            return await run_load(
                target, bodies[args.num_warmups :], arrivals, args.max_concurrency, args.duration, bar.update
            )

    return asyncio.run(run())


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ValueError(f"header: {text!r} is not NAME=VALUE")
    return name, value


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _allow_many_connections() -> None:
    """Each request has one; what a process may open is often 1024 unless it asks for more."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
