"""Flags made from the dataclasses that hold the options: each field is a flag, so the two cannot drift apart.

Only what the user gave is passed on: every default stays where the dataclass, or the model's generation config, has it.
"""

import argparse
import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal

from lightvllm.config import EngineConfig, ServerConfig
from lightvllm.sampling_params import SamplingParams, StructuredOutputsParams

_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def add_engine_flags(parser: argparse.ArgumentParser, skip: Collection[str] = ()) -> None:
    """Add a flag for each field of `EngineConfig` but those in `skip`."""
    group = parser.add_argument_group("engine", "the model, if none is named, is the one that comes with LightvLLM")
    _add_fields(group, EngineConfig, skip, {f.name: f.metadata["help"] for f in dataclasses.fields(EngineConfig)})


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each field of `ServerConfig`."""
    group = parser.add_argument_group("server")
    _add_fields(group, ServerConfig, (), {f.name: f.metadata["help"] for f in dataclasses.fields(ServerConfig)})


def add_sampling_flags(parser: argparse.ArgumentParser, skip: Collection[str] = ()) -> None:
    """Add a flag for each argument of `SamplingParams` but those in `skip`.

    Its `seed` has none: on the command line --seed is the engine's, from which each request gets its own.
    """
    group = parser.add_argument_group("sampling", "what is not given is as the model's generation_config.json says")
    _add_fields(group, SamplingParams, {"seed", *skip}, attribute_docs(SamplingParams))


def given(args: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of a dataclass that the user gave a flag for."""
    prefix = f"{options.__name__}."
    return {name.removeprefix(prefix): value for name, value in vars(args).items() if name.startswith(prefix)}


def attribute_docs(cls: type) -> dict[str, str]:
    """What a class's docstring says of its attributes: name -> text."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _add_fields(
    group: argparse._ArgumentGroup, options: type[Any], skip: Collection[str], docs: dict[str, str]
) -> None:
    for field in dataclasses.fields(options):
        if not field.init or field.name in skip:
            continue
        text = docs.get(field.name, "").removesuffix(".")
        how = _argument(field)
        if how.get("action") == "append":
            text += "; may be given several times"
        if field.default not in (None, dataclasses.MISSING) and "default" not in text:
            shown = (
                {True: "on", False: "off"}.get(field.default, field.default) if field.type is bool else field.default
            )
            text += f" (default: {shown})"
        group.add_argument(
            "--" + field.name.replace("_", "-"),
            # The class keeps fields of the same name apart.
            dest=f"{options.__name__}.{field.name}",
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%"),
            **how,
        )


def _argument(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """How argparse reads a value of the field's type."""
    # A Literal or None is a union of another kind than a class or None.
    is_union = typing.get_origin(field.type) in (types.UnionType, typing.Union)
    kinds = typing.get_args(field.type) if is_union else (field.type,)
    is_optional = types.NoneType in kinds
    kind = next(kind for kind in reversed(kinds) if kind is not types.NoneType)  # of `str | list[str]` the list
    origin, parameters = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is Literal:
        return {"choices": parameters}
    if kind is StructuredOutputsParams:
        return {"type": _structured_outputs, "metavar": "JSON"}
    if origin is dict:
        return {"type": _json_object(parameters[0]), "metavar": "JSON"}
    if origin is list and parameters == (int,):
        return {"type": _integers, "metavar": "N,N,..."}
    if origin is list:
        return {"action": "append", "metavar": "TEXT"}
    if is_optional and field.default is not None:
        return {"type": _or_none(kind), "metavar": f"{_METAVARS[kind]}|none"}
    return {"type": kind, "metavar": _METAVARS[kind]}


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text == "none" else kind(text)

    read.__name__ = getattr(kind, "__name__", "value")  # argparse names it in its error
    return read


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,2,3") from None


def _structured_outputs(text: str) -> StructuredOutputsParams:
    try:
        return StructuredOutputsParams(**_json_object(str)(text))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _json_object(key_type: type) -> Callable[[str], dict[Any, Any]]:
    def read(text: str) -> dict[Any, Any]:
        try:
            return {key_type(key): value for key, value in json.loads(text).items()}
        except (ValueError, AttributeError):
            raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object with {key_type.__name__} keys") from None

    return read
