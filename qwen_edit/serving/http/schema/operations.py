"""One operation, and the parts that many have."""

from typing import Any

from qwen_edit.serving.http.edge import LONGEST_KEY
from qwen_edit.serving.http.schema import examples, failures, shapes

Schema = dict[str, Any]

JOB_ID: Schema = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "the id that /run or /runsync answered",
    "schema": {"type": "string", "minLength": 1},
    "example": examples.JOB_ID,
}
WAIT: Schema = {
    "name": "wait",
    "in": "query",
    "description": "milliseconds to wait for the end, held to 1,000 to 300,000; 90,000 where left out",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    "example": 90_000,
}
KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "the caller's own name for the job: a repeat on the same route finds the job that runs already",
    "schema": {"type": "string", "maxLength": LONGEST_KEY},
}


def operation(name: str, summary: str, responses: dict[str, Schema], **more: object) -> Schema:
    """An operation. `more` are other fields of OpenAPI's operation object, without those that are empty."""
    kept = {key: value for key, value in more.items() if value}
    return {"operationId": name, "summary": summary, **kept, "responses": responses}


def found(description: str, shape: str, **more: object) -> Schema:
    """An answer of JSON with the status 200."""
    content = {"application/json": {"schema": shapes.reference(shape)}}
    return {"200": {"description": description, "headers": failures.REQUEST_ID, "content": content, **more}}


def json_body(shape: str, shown: dict[str, object]) -> Schema:
    """A body of JSON, with its examples by their names."""
    named = {name: {"value": value} for name, value in shown.items()}
    return {"application/json": {"schema": shapes.reference(shape), "examples": named}}


def body(content: Schema) -> Schema:
    """A body that must be there."""
    return {"required": True, "content": content}
