"""The answers that are errors: for each status the causes, and the two shapes of a body."""

from typing import Any

from qwen_edit.serving.http.errors import OPENAI, Refusal

Schema = dict[str, Any]

REQUEST_ID: Schema = {
    "X-Request-Id": {
        "required": True,
        "schema": {"type": "string"},
        "description": "the caller's own, the job's id, or a new one",
    }
}

_CAUSES: dict[int, tuple[str, str, str]] = {
    400: (
        "invalid_request, invalid_image: a field, the picture or the body is wrong",
        "invalid_request",
        "rank is 7, expected the integer 128 (32 and 64 run as 128)",
    ),
    401: ("unauthorized: the key is missing or wrong", "unauthorized", "the key is missing or wrong"),
    404: (
        "not_found: there is no job of this id, or its result is no longer kept",
        "not_found",
        "there is no job of this id, or its result is no longer kept",
    ),
    408: ("invalid_request: the body came too slowly", "invalid_request", "the body came too slowly"),
    410: ("cancelled: the edit was cancelled", "cancelled", "the job was cancelled"),
    413: (
        "image_too_large: the body or the picture is too large",
        "image_too_large",
        "the body is too long, expected at most 30,000,000 bytes",
    ),
    422: (
        "output_too_large: the result does not fit the reply",
        "output_too_large",
        "the picture does not fit the reply",
    ),
    429: (
        "overloaded: every place is taken; Retry-After has the seconds to wait",
        "overloaded",
        "every place is taken; send it again in 5 s",
    ),
    500: (
        "internal: anything else; the worker's log has the details",
        "internal",
        "the edit failed; the worker's log has the details",
    ),
    503: (
        "model_unavailable, overloaded, internal: this worker cannot now",
        "model_unavailable",
        "the model could not be loaded; the worker's log has the details",
    ),
    507: (
        "out_of_memory: the device's memory does not suffice",
        "out_of_memory",
        "1 picture(s) of 2048 × 2048 pixels do not fit the device's memory",
    ),
}

_HEADERS: dict[int, dict[str, Schema]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    429: {
        "Retry-After": {
            "required": True,
            "schema": {"type": "integer", "minimum": 1, "maximum": 120},
            "description": "seconds",
        }
    },
}
_NO_REPEAT: Schema = {
    "X-Should-Retry": {"schema": {"const": "false"}, "description": "there where a repeat cannot mend it"}
}

ERROR: Schema = {
    "type": "object",
    "description": "A code, a colon and one sentence.",
    "properties": {"error": {"type": "string", "pattern": "^[a-z_]+: "}},
    "required": ["error"],
    "additionalProperties": False,
}
OPENAI_ERROR: Schema = {
    "type": "object",
    "description": "OpenAI's shape of an error.",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"enum": ["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}

READING, BODY, JOB, MAKING, EDITING = (401, 500), (408, 413, 503), (404,), (400, 429), (410, 422, 507)
"""Statuses of every route behind the key, and those that a body, a job's id, a new job and its end add."""


def responses(path: str, *groups: tuple[int, ...]) -> dict[str, Schema]:
    """Status → response, in the words of the routes below which a path lies."""
    return {str(status): _response(path, status) for status in sorted({one for group in groups for one in group})}


def _response(path: str, status: int) -> Schema:
    text, code, sentence = _CAUSES[status]
    shape = "OpenAIError" if path.startswith(OPENAI) else "Error"
    media = {
        "schema": {"$ref": f"#/components/schemas/{shape}"},
        "example": Refusal(status, code, sentence).body(path),
    }
    headers = REQUEST_ID | _NO_REPEAT | _HEADERS.get(status, {})
    return {"description": text, "headers": headers, "content": {"application/json": media}}
