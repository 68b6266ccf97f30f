"""How a request asks for output of some form: OpenAI's `response_format`, vLLM's `structured_outputs`, `guided_*`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from lightvllm.errors import ParameterError
from lightvllm.sampling_params import StructuredOutputsParams
from lightvllm.server.limits import MAX_CHOICES, MAX_STRUCTURE_CHARACTERS
from lightvllm.server.protocol.base import RequestModel

Structure = Annotated[str, Field(max_length=MAX_STRUCTURE_CHARACTERS)]
Schema = dict[str, Any]


class TextFormat(RequestModel):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(RequestModel):
    """Some JSON object."""

    type: Literal["json_object"]


class JsonSchema(RequestModel):
    """A named JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", description="Of the schema; the model does not see it.")
    schema_: Schema = Field(alias="schema", description="JSON schema that the output fits.")
    description: str | None = Field(None, max_length=4096, description="Of the schema; the model does not see it.")
    strict: bool = Field(True, description="The schema is enforced exactly either way.")


class JsonSchemaFormat(RequestModel):
    """A JSON value that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(RequestModel):
    """vLLM's field: exactly one of the first five."""

    json_: Schema | Structure | None = Field(None, alias="json", description="JSON schema, or its text.")
    regex: Structure | None = Field(None, description="Regular expression that the whole output matches.")
    choice: list[Structure] | None = Field(
        None, min_length=1, max_length=MAX_CHOICES, description="Strings, one of which the output is."
    )
    grammar: Structure | None = Field(None, description="Context-free grammar in Lark's notation or in GBNF.")
    json_object: bool | None = Field(None, description="true: some JSON object.")
    disable_any_whitespace: bool = Field(True, description="JSON has no white space outside of strings.")
    whitespace_pattern: Structure | None = Field(None, description="Regular expression of white space between tokens.")
    disable_additional_properties: bool = Field(
        False, description="Objects have the properties they name and no other."
    )
    structural_tag: None = Field(None, description="Refused: structural tags are not supported, use grammar.")


class StructureFields(RequestModel):
    """The fields of a request that ask for a form; at most one of them may."""

    response_format: ResponseFormat | None = Field(
        None, description="`text`, `json_object` or `json_schema`: the output's form, enforced token by token."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="One of json, regex, choice, grammar and json_object, enforced token by token."
    )
    guided_json: Schema | Structure | None = Field(None, description="Older name of `structured_outputs.json`.")
    guided_regex: Structure | None = Field(None, description="Older name of `structured_outputs.regex`.")
    guided_choice: list[Structure] | None = Field(
        None, min_length=1, max_length=MAX_CHOICES, description="Older name of `structured_outputs.choice`."
    )
    guided_grammar: Structure | None = Field(None, description="Older name of `structured_outputs.grammar`.")
    guided_json_object: bool | None = Field(None, description="Older name of `structured_outputs.json_object`.")
    guided_whitespace_pattern: Structure | None = Field(
        None, description="With `guided_json`: as `structured_outputs.whitespace_pattern`."
    )
    guided_decoding_backend: None = Field(None, description="Refused: there is one backend, llguidance.")

    @property
    def structure_field(self) -> str | None:
        """Which field asks for a form.

        Raises:
            ParameterError: several do.
        """
        asking = [
            name for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar") if _given(self, name)
        ]
        asking += ["guided_json_object"] if self.guided_json_object else []
        asking += ["structured_outputs"] if self.structured_outputs is not None else []
        if self.response_format is not None and self.response_format.type != "text":
            asking.append("response_format")
        if len(asking) > 1:
            raise ParameterError(asking[0], f"{asking[0]}: only one form can be asked for, but {asking[1]} does, too")
        if self.guided_whitespace_pattern is not None and asking not in (["guided_json"], ["guided_json_object"]):
            raise ParameterError(
                "guided_whitespace_pattern", "guided_whitespace_pattern: only means something with guided_json"
            )
        return asking[0] if asking else None

    def structure(self) -> StructuredOutputsParams | None:
        """The form that is asked for, None if none is.

        Raises:
            ParameterError: several forms, or one that makes no sense.
        """
        field = self.structure_field
        if field is None:
            return None
        try:
            return StructuredOutputsParams(**self._arguments(field))
        except ParameterError as error:
            raise ParameterError(field, str(error).replace("structured_outputs", field, 1)) from None

    def _arguments(self, field: str) -> dict[str, Any]:
        if field == "structured_outputs":
            given = self.structured_outputs
            assert given is not None
            arguments = given.model_dump(by_alias=True, exclude_unset=True)
        elif isinstance(self.response_format, JsonSchemaFormat) and field == "response_format":
            arguments = {"json": self.response_format.json_schema.schema_}
        elif field == "response_format":
            arguments = {"json_object": True}
        else:
            arguments = {field.removeprefix("guided_"): getattr(self, field)}
            if self.guided_whitespace_pattern is not None:
                arguments["whitespace_pattern"] = self.guided_whitespace_pattern
        schema = arguments.get("json")
        if isinstance(schema, dict) and len(json.dumps(schema)) > MAX_STRUCTURE_CHARACTERS:
            raise ParameterError(field, f"{field}: the schema has more than {MAX_STRUCTURE_CHARACTERS} characters")
        return arguments


def _given(request: StructureFields, name: str) -> bool:
    return getattr(request, name) is not None
