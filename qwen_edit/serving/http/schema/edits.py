"""The routes that answer with the edit itself: OpenAI's, and the one for a file."""

from typing import Any

from qwen_edit.serving.http.schema import examples, failures, fields
from qwen_edit.serving.http.schema.failures import BODY, EDITING, MAKING, READING, REQUEST_ID
from qwen_edit.serving.http.schema.operations import KEY, body, found, json_body, operation
from qwen_edit.serving.http.schema.shapes import reference

Schema = dict[str, Any]

PICTURES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
_RECEIPT: Schema = {
    "name": "receipt",
    "in": "query",
    "description": "0 leaves the header X-Qwen-Edit out",
    "schema": {"enum": ["0", "1"], "default": "1"},
}
_FORM = {"prompt": "make it snow", "size": "256x256"}


def paths() -> dict[str, Schema]:
    """Path → its operations."""
    models = found("the models", "Models") | failures.responses("/v1/models", READING)
    return {
        "/v1/images/edits": {"post": _openai()},
        "/v1/models": {"get": operation("models", "List the one model", models, tags=["OpenAI"])},
        "/edit": {"post": _edit()},
    }


def _openai() -> Schema:
    path = "/v1/images/edits"
    done = found("the pictures", "OpenAIReply")
    done["200"]["content"]["text/event-stream"] = {
        "schema": {
            "type": "object",
            "description": "one event",
            "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["data"],
        },
        "example": 'event: image_edit.completed\ndata: {"type": "image_edit.completed", "b64_json": "…"}\n\n',
    }
    content = json_body("OpenAIEdit", {"an edit": examples.OPENAI, "a stream": examples.STREAM}) | _form()
    return operation(
        "images_edits",
        "Edit a picture, in OpenAI's words",
        done | failures.responses(path, READING, BODY, MAKING, EDITING),
        tags=["OpenAI"],
        description="Also at /openai/v1/images/edits. With stream the events are image_edit.partial_image, "
        "image_edit.completed for each picture, and [DONE]; an error in a stream is an event with error.",
        parameters=[KEY],
        requestBody=body(content),
    )


def _edit() -> Schema:
    done = found("the edit", "EditResponse")
    done["200"]["content"] |= {kind: {"schema": fields.FILE} for kind in PICTURES[:3]}
    receipt: Schema = {"schema": {"type": "string"}, "description": "beside a picture: the response without it"}
    done["200"]["headers"] = REQUEST_ID | {"X-Qwen-Edit": receipt}
    pictures: dict[str, Schema] = {kind: {"schema": fields.FILE} for kind in PICTURES}
    return operation(
        "edit",
        "Edit a picture: a file in, and where Accept asks for image/* a file out",
        done | failures.responses("/edit", READING, BODY, MAKING, EDITING),
        tags=["Picture"],
        description="The body is the picture alone, with the fields in the query; or a form or JSON in OpenAI's words, "
        "without a query.",
        parameters=[KEY, _RECEIPT, *fields.query()],
        requestBody=body(pictures | json_body("OpenAIEdit", {"an edit": examples.OPENAI}) | _form()),
    )


def _form() -> dict[str, Schema]:
    shown = {"a file": {"value": {"image": examples.PICTURE, **_FORM}}}
    return {"multipart/form-data": {"schema": reference("EditForm"), "examples": shown}}
