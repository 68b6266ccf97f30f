"""What /openapi.json says beyond what FastAPI finds out: bodies that we parse ourselves, and what comes as a stream."""

from typing import Any

import msgspec
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REF = "#/components/schemas/"


def json_body(*models: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra=` of a route whose body has the form of one of these models."""
    refs = [{"$ref": _REF + model.__name__} for model in models]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answer(whole: type[msgspec.Struct], chunk: type[msgspec.Struct]) -> dict[str, Any]:
    """The entry 200 of `responses=` of a route that answers in JSON, or with a stream of chunks."""
    return {
        "description": f"The answer; with `stream`, server-sent events with a {chunk.__name__} each, then `[DONE]`.",
        "content": {
            "application/json": {"schema": {"$ref": _REF + whole.__name__}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }


def complete_openapi(
    app: FastAPI, bodies: list[type[BaseModel]], answers: list[type[msgspec.Struct]], *, has_keys: bool
) -> None:
    """Add the schemas that `json_body` and `answer` refer to, and API keys if there are any, to the description."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = make()
            components = description.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            _, definitions = models_json_schema(
                [(model, "validation") for model in bodies], ref_template=_REF + "{model}"
            )
            schemas.update(definitions.get("$defs", {}))
            schemas.update(msgspec.json.schema_components(answers, ref_template=_REF + "{name}")[1])
            if has_keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                description["security"] = [{"key": []}]
            _drop_unprocessable(description)
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_unprocessable(description: dict[str, Any]) -> None:
    """FastAPI says that it answers what is not valid with 422. Here that is a 400, which each route says itself."""
    for path in description["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        description["components"]["schemas"].pop(name, None)
