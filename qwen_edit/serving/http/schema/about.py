"""What a worker says about itself, and the pages."""

from typing import Any

from qwen_edit.serving.http.schema import failures
from qwen_edit.serving.http.schema.failures import READING, REQUEST_ID
from qwen_edit.serving.http.schema.operations import found, operation
from qwen_edit.serving.http.schema.shapes import reference

Schema = dict[str, Any]

_TAGS = ["Worker"]


def paths() -> dict[str, Schema]:
    """Path → its operations."""
    health = found("the counts", "Health") | failures.responses("/health", READING)
    info = found("the model", "ModelInfoReply") | failures.responses("/model-info", READING)
    counted = {"description": "the metrics", "headers": REQUEST_ID, "content": {"text/plain": _plain()}}
    metrics = {"200": counted} | failures.responses("/metrics", READING)
    return {
        "/ping": _open("ping", "Say whether the worker is healthy, for RunPod's load balancer", _ping()),
        "/health/ready": _open("ready", "Say whether the worker is ready, for Kubernetes and the like", _ready()),
        "/health": {"get": operation("health", "Count jobs and workers, as RunPod does", health, tags=_TAGS)},
        "/model-info": {"get": operation("model_info", "Tell the model and its choices", info, tags=_TAGS)},
        "/metrics": {"get": operation("metrics", "Tell the metrics in Prometheus' words", metrics, tags=_TAGS)},
        "/": _open("page", "Show the page that edits a picture", _html((500,))),
        "/docs": {"get": operation("docs", "Show this description as a page", _html(READING), tags=_TAGS)},
        "/openapi.json": {"get": operation("openapi", "Give this description as JSON", _document(), tags=_TAGS)},
    }


def _open(name: str, summary: str, responses: dict[str, Schema]) -> Schema:
    """An operation that nobody needs a key for."""
    return {"get": operation(name, summary, responses, tags=_TAGS) | {"security": []}}


def _ping() -> dict[str, Schema]:
    return {
        "200": {"description": "ready"},
        "204": {"description": "loading"},
        "503": {"description": "failed, or about to end"},
    }


def _ready() -> dict[str, Schema]:
    content = {"application/json": {"schema": reference("Ready")}}
    return {
        "200": {"description": "ready", "content": content},
        "503": {"description": "not yet, or not any more", "content": content},
    }


def _html(statuses: tuple[int, ...]) -> dict[str, Schema]:
    page: Schema = {"description": "the page", "content": {"text/html": {"schema": {"type": "string"}}}}
    return {"200": page, "304": {"description": "the page is known"}} | failures.responses("/", statuses)


def _document() -> dict[str, Schema]:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {"200": {"description": "OpenAPI 3.1", "content": content}} | failures.responses("/", READING)


def _plain() -> Schema:
    return {"schema": {"type": "string"}}
