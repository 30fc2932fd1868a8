"""The whole description, `/openapi.json`."""

from functools import cache
from typing import Any

from qwen_edit.serving.http.schema import about, edits, runpod, shapes
from qwen_edit.version import VERSION

_TEXT = """An image editor behind HTTP, in the words of RunPod's queue, of OpenAI, and for plain files.

All paths but /ping and /health/ready are also served below /v2/{endpoint}, whatever the endpoint's name is: clients of
RunPod work with another base address alone. OpenAI's paths are also served below /openai.

Every answer but those of /ping and /health/ready has an X-Request-Id. A method that a path does not take is answered
with 405, and an unknown path with 404, in the shape of the path's errors."""

_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "QWEN_EDIT_API_KEY, with or without Bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "QWEN_EDIT_API_KEY"},
}
_PREFIX = {"url": "/v2/{endpoint}", "variables": {"endpoint": {"default": "local", "description": "any name"}}}
_ONLY_AT_ROOT = ("/ping", "/health/ready")


@cache
def document(*, has_key: bool) -> dict[str, Any]:
    """The description of a server.

    Args:
        has_key: whether it asks for a key.
    """
    paths = runpod.paths() | edits.paths() | about.paths()
    for path in _ONLY_AT_ROOT:
        paths[path] = {"servers": [{"url": "/"}], **paths[path]}
    security: dict[str, Any] = {"security": [{scheme: []} for scheme in _SECURITY]} if has_key else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen-edit", "version": VERSION, "description": _TEXT},
        "servers": [{"url": "/"}, _PREFIX],
        "paths": paths,
        **security,
        "components": {"schemas": shapes.components(), "securitySchemes": _SECURITY},
    }
