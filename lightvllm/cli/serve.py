"""`lightvllm serve`: the OpenAI-compatible HTTP server."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from lightvllm.cli.flags import add_engine_flags, add_server_flags, given
from lightvllm.cli.parser import Parser, add_verb, did_you_mean
from lightvllm.config import DEFAULT_MODEL, EngineConfig, ServerConfig

DESCRIPTION = """
It speaks OpenAI's API, with vLLM's extensions: /v1/chat/completions, /v1/completions and more, listed at /docs. The
page at / is a playground and shows the engine at work. Without a model it serves the one that comes with LightvLLM.

  lightvllm serve
  lightvllm serve path/to/checkpoint --host 0.0.0.0 --api-key SECRET
  lightvllm serve --config server.yaml

The file of --config has the flags' names as keys, one a line, such as `max-model-len: 4096`; a flag counts more."""

# As vLLM's server has them on a CPU: smaller steps than offline, so that the next token of running requests comes soon.
SERVER_DEFAULTS = {"max_num_seqs": 128, "max_num_batched_tokens": 2048}


def add_parser(verbs: "argparse._SubParsersAction[Parser]") -> None:
    """Add the verb to the command line."""
    parser = add_verb(verbs, "serve", run, "answer requests over HTTP, as OpenAI does", DESCRIPTION, "[MODEL]")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint folder or hub name (also --model)")
    parser.add_argument("--config", metavar="FILE", help="YAML file with flags")
    add_server_flags(parser)
    add_engine_flags(parser, skip={"skip_tokenizer_init"})


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit code."""
    from lightvllm.server.run import run_server

    options = read_config(args.config) if args.config else {}
    options |= given(args, ServerConfig) | given(args, EngineConfig)
    if args.model is not None:
        if options.get("model", args.model) != args.model:
            raise ValueError(f"model: {args.model!r} and {options['model']!r} are given, expected one")
        options["model"] = args.model
    server = {name: value for name, value in options.items() if name in _names(ServerConfig)}
    engine = {name: value for name, value in options.items() if name not in server}
    return run_server(
        EngineConfig(**{"model": str(DEFAULT_MODEL), **SERVER_DEFAULTS, **engine}), ServerConfig(**server), args.debug
    )


def read_config(file: str) -> dict[str, Any]:
    """The options in a YAML file, under the names of the dataclasses' fields.

    Raises:
        ValueError: the file cannot be read, is not a mapping, or has a key that is no flag.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--config: cannot read {file!r}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"--config: {file!r} must have a line `flag: value` for each flag")
    options = {str(key).replace("-", "_"): value for key, value in content.items()}
    known = (_names(ServerConfig) | _names(EngineConfig)) - {"skip_tokenizer_init"}
    for name in options:
        if name not in known:
            raise ValueError(f"--config: {name!r} in {file!r} is no flag{did_you_mean(name, known)}")
    return options


def _names(options: type[Any]) -> set[str]:
    return {field.name for field in dataclasses.fields(options)}
