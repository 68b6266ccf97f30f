"""What all request bodies share: strict types, no unknown fields, and errors that name the field and the value."""

import difflib
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, ErrorDetails

from lightvllm.errors import ParameterError

_MAX_SHOWN = 80  # characters of a value in an error message


class RequestModel(BaseModel):
    """A JSON object in a request.

    Types are exact: "5" is no 5 and true is no 1, and a field that is not known is refused. A null is as if the field
    was not there.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None or name not in cls._names()}

    @classmethod
    def _names(cls) -> set[str]:
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema, in which every field that may be left out may be null, too."""
        schema = handler(core_schema)
        resolved = handler.resolve_ref_schema(schema)
        required = resolved.get("required", [])
        for name, field in resolved.get("properties", {}).items():
            if name not in required and field.get("type") != "null" and {"type": "null"} not in field.get("anyOf", []):
                about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
                forms = field.pop("anyOf", None) or [dict(field)]
                resolved["properties"][name] = {"anyOf": [*forms, {"type": "null"}], **about}
        return schema


def refused(reason: str) -> Any:
    """A field that clients know and this server does not have: only null is accepted.

    The field's type is None; the reason is its description, and the error message of a request that sets it.
    """
    return Field(default=None, description=f"Refused: {reason}.")


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_object(model: type[ModelT], data: dict[str, Any]) -> ModelT:
    """Make a request's model of its JSON object.

    Raises:
        ParameterError: of the first mistake; `parameter` is the name of the field of the whole request it is in.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _describe(model, data, error) from None


def _describe(model: type[BaseModel], data: dict[str, Any], error: ValidationError) -> ParameterError:
    details = error.errors(include_url=False)
    first = details[0]
    own = (first.get("ctx") or {}).get("error")
    if isinstance(own, ParameterError):
        return own
    field = str(first["loc"][0])[:_MAX_SHOWN] if first["loc"] else ""
    # A value that may have several forms has an error for each; the one that went deepest is of the form meant.
    paths = [(_path(data, detail), detail) for detail in details if detail["loc"][:1] == first["loc"][:1]]
    where = max((path for path, _ in paths), key=len)
    reasons = [_reason(model, data, detail) for path, detail in paths if path == where]
    return ParameterError(field, f"{_spell(where)}: {' or '.join(dict.fromkeys(reasons))}{_found(paths, where)}")


def _found(paths: list[tuple[tuple[str | int, ...], ErrorDetails]], where: tuple[str | int, ...]) -> str:
    detail = next(detail for path, detail in paths if path == where)
    if detail["type"] in ("missing", "extra_forbidden", "none_required", "value_error", "union_tag_not_found"):
        return ""
    value = detail["input"]
    if detail["type"] == "union_tag_invalid":
        value = value[detail["ctx"]["discriminator"].strip("'")]
    return f", got {show(value)}"


def _path(data: Any, detail: ErrorDetails) -> tuple[str | int, ...]:
    """Where in the request the error is: pydantic's location without the names of alternatives that it puts in."""
    path: list[str | int] = []
    for step in detail["loc"]:
        is_key = isinstance(data, dict) and step in data
        is_index = isinstance(data, list) and isinstance(step, int) and step < len(data)
        if is_key or is_index:
            data = data[step]
            path.append(step)
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return tuple(path)


def _spell(path: tuple[str | int, ...]) -> str:
    """`messages[0].content`; names that a client made up are shown escaped."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            name = step[:_MAX_SHOWN]
            text += ("." if text else "") + (name if name.isidentifier() and name.isascii() else show(step))
    return text


def _reason(model: type[BaseModel], data: dict[str, Any], detail: ErrorDetails) -> str:
    kind, name = detail["type"], str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        nearest = (
            difflib.get_close_matches(name[:_MAX_SHOWN], _known_names(model), n=1) if len(detail["loc"]) == 1 else []
        )
        return "no such field here" + (f", did you mean {nearest[0]!r}?" if nearest else "")
    if kind == "none_required" and len(detail["loc"]) == 1:
        reason = str(model.model_fields[name].description)
        return reason[:1].lower() + reason[1:].rstrip(".")
    if kind == "union_tag_not_found":
        return f"has no {detail['ctx']['discriminator']}"
    if kind == "union_tag_invalid":
        return f"its {detail['ctx']['discriminator']} must be one of {detail['ctx']['expected_tags']}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "should be an object"
    message = detail["msg"].removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _known_names(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if field.annotation is not type(None)]


def show(value: Any) -> str:
    """A value from a request as it may stand in a message: short, and with nothing but printable ASCII."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = ascii(value[: _MAX_SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
