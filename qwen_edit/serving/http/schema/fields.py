"""The bodies that ask for an edit, derived from the contract's model and from its tables of other services' names."""

import json
from collections.abc import Mapping
from typing import Any

from qwen_edit.contract.dialects import SERVICES, Ignored, Picture, Reading, Refused, Renamed, Size, Unused
from qwen_edit.contract.openai import DIALECT, MAX_PARTIAL_IMAGES
from qwen_edit.contract.request import EditRequest
from qwen_edit.serving.http.schema import examples
from qwen_edit.store.catalog import CHECKPOINTS, OLD_RANKS, OLD_STEPS, RANK

Schema = dict[str, Any]

_SIZE = "width and height, such as 1024x768, or auto"
_PICTURE: Schema = {"$ref": "#/components/schemas/Picture"}
FILE: Schema = {"type": "string", "format": "binary"}

_BOUNDS = {"ge": "minimum", "le": "maximum"}
"""pydantic leaves these two as they are where a validator of ours comes before a number's own."""

_CHOICES: Mapping[str, Schema] = {
    "rank": {"enum": [*OLD_RANKS, RANK]},
    "steps": {
        "anyOf": [
            {"const": OLD_STEPS},
            *({"minimum": one.steps[0], "maximum": one.steps[-1]} for one in CHECKPOINTS),
        ]
    },
    "output_format": {"enum": ["png", "jpeg", "jpg", "webp", "auto"]},
}
"""What the model's validators know and its schema does not."""

_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})
"""What a field that is not served may be, as `dialects` has it."""


def contract() -> Schema:
    """The contract's request, and the names that other services have for its fields."""
    return _of(SERVICES, {}, "One edit. Null means left out. An unknown field is an error.")


def openai() -> Schema:
    """The same in OpenAI's words."""
    more: dict[str, Schema] = {
        "stream": {"type": ["boolean", "null"], "default": False, "description": "true answers with events"},
        "partial_images": {
            "type": ["integer", "null"],
            "minimum": 0,
            "maximum": MAX_PARTIAL_IMAGES,
            "description": "previews in a stream",
        },
    }
    return _of(DIALECT, more, "One edit in OpenAI's words. The contract's own fields are taken beside them.")


def form() -> Schema:
    """A form of OpenAI's fields: numbers and booleans as text, and an empty part is left out."""
    plain = {name: one for name, one in _own().items() if name not in ("image", "return")}
    properties: dict[str, Schema] = {
        "image": {**FILE, "description": "the picture, a file"},
        **{name: _as_text(name, one) for name, one in plain.items()},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 4, "description": "another name of num_images"},
        "size": {"type": ["string", "null"], "examples": ["256x256"], "description": _SIZE},
        "stream": {"type": ["boolean", "null"], "description": "true answers with events"},
    }
    text = "OpenAI's form. All fields of the JSON body are taken as parts; these are the usual ones."
    return {"type": "object", "description": text, "properties": properties, "required": ["image", "prompt"]}


def query() -> list[Schema]:
    """The parameters of a request whose body is the picture alone."""
    plain = {name: one for name, one in _own().items() if name != "image"}
    return [
        {
            "name": name,
            "in": "query",
            "description": one["description"],
            "schema": {key: value for key, value in _as_text(name, one).items() if key != "description"},
        }
        for name, one in plain.items()
    ]


def picture() -> Schema:
    """A picture in JSON: itself, its address as OpenAI writes it, or a list of one."""
    text: Schema = {"type": "string", "minLength": 1, "examples": [examples.PICTURE]}
    address = {
        "type": "object",
        "properties": {"image_url": text},
        "required": ["image_url"],
        "additionalProperties": False,
    }
    one = [text, address]
    return {"anyOf": [*one, {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": one}}]}


def _of(dialect: Mapping[str, Reading], more: Mapping[str, Schema], text: str) -> Schema:
    own = _own()
    others = {name: _reading(reading, own) for name, reading in dialect.items() if name not in own}
    pictures = [name for name, reading in dialect.items() if isinstance(reading, Picture)]
    return {
        "type": "object",
        "description": text + " The picture may come under one of the names " + ", ".join(pictures) + ".",
        "properties": {name: one if name == "prompt" else _nullable(one) for name, one in own.items()}
        | others
        | dict(more),
        "required": ["prompt"],
        "additionalProperties": False,
    }


def _own() -> dict[str, Schema]:
    """The contract's fields by their names in JSON, without null."""
    made = EditRequest.model_json_schema()["properties"]
    made = {name: _choices(name, _without_null(one)) for name, one in made.items()}
    made["image"] = {**_PICTURE, "description": made["image"]["description"]}
    return made


def _without_null(schema: Schema) -> Schema:
    one, *_ = [option for option in schema.get("anyOf", [{}]) if option.get("type") != "null"]
    kept = {name: value for name, value in schema.items() if name not in ("anyOf", "title")}
    if kept.get("default", 0) is None:
        del kept["default"]
    return {_BOUNDS.get(name, name): value for name, value in {**one, **kept}.items()}


def _choices(name: str, schema: Schema) -> Schema:
    return {**schema, **_CHOICES.get(name, {})}


def _reading(reading: Reading, own: Mapping[str, Schema]) -> Schema:
    match reading:
        case Renamed(field, values):
            field = "return" if field == "return_as" else field
            text = f"another name of {field}"
            return (
                {"enum": [*values, None], "description": text}
                if values
                else _nullable(own[field]) | {"description": text}
            )
        case Picture(usual):
            return {"anyOf": [_PICTURE, _usual(usual)], "description": "another name of image"}
        case Size(usual):
            sides = {name: own[name] for name in ("width", "height")}
            both = {"type": "object", "properties": sides, "required": [*sides], "additionalProperties": False}
            return {"anyOf": [{"type": "string"}, both, _usual(usual)], "description": _SIZE}
        case Ignored():
            return {"description": "taken, and changes nothing"}
        case Unused(why):
            return {"description": f"taken with a warning: {why}"}
        case Refused(expected, usual):
            return {"enum": _once(*_NOTHING, *usual), "description": f"not served; expected {expected}"}


def _usual(values: tuple[object, ...]) -> Schema:
    return {"enum": _once(None, *(value for value in values if not isinstance(value, bytes)))}


def _once(*values: object) -> list[object]:
    """Without repeats, as JSON sees them: false is not 0."""
    return list({json.dumps(value): value for value in values}.values())


def _nullable(schema: Schema) -> Schema:
    if "$ref" in schema:
        return {"anyOf": [_PICTURE, {"type": "null"}], "description": schema["description"]}
    options = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    if "anyOf" in schema:
        options = {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"], **options}


def _as_text(name: str, schema: Schema) -> Schema:
    """A field as text, of which an empty one and the word null are left out."""
    given = schema if name == "prompt" else _nullable(schema)
    return {**given, "examples": [examples.EDIT[name]]} if name in examples.EDIT else given
