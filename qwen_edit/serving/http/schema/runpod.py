"""RunPod's API: `/run` and what a caller may do with a job."""

from typing import Any

from qwen_edit.contract.openai import ROUTE
from qwen_edit.serving.http.schema import examples, failures
from qwen_edit.serving.http.schema.failures import BODY, JOB, MAKING, READING
from qwen_edit.serving.http.schema.operations import JOB_ID, KEY, WAIT, body, found, json_body, operation

Schema = dict[str, Any]

_TAGS = ["RunPod"]
_JOBS: dict[str, object] = {
    "an edit": {"input": examples.EDIT},
    "OpenAI's words": {"input": {"openai_route": ROUTE, "openai_input": examples.OPENAI}},
    "with a policy": {"input": examples.EDIT, "policy": {"executionTimeout": 60_000, "ttl": 600_000}},
}
_FOLLOWING = ("status", "status_sync", "stream", "cancel")


def paths() -> dict[str, Schema]:
    """Path → its operations."""
    return {
        "/run": {"post": _submitting("/run", "run", "Take a job and answer at once", "Taken", [KEY])},
        "/runsync": {"post": _submitting("/runsync", "runsync", "Take a job and wait for it", "State", [KEY, WAIT])},
        "/status/{job_id}": {"get": _asking("status", "Tell how far a job is, and its result", "State")},
        "/status-sync/{job_id}": {
            "get": _asking("status_sync", "As status, after the job's end or a while", "State", waits=True)
        },
        "/stream/{job_id}": {
            "get": _asking("stream", "Give the updates that nobody has taken yet, or wait for one", "News")
        },
        "/cancel/{job_id}": {"post": _changing("/cancel", "cancel", "Stop a job")},
        "/retry/{job_id}": {
            "post": _changing("/retry", "retry", "Run a job that failed or took too long once more", MAKING)
        },
        "/purge-queue": {
            "post": operation(
                "purge_queue",
                "Stop all jobs that have not begun",
                found("how many these were", "Purged") | failures.responses("/purge-queue", READING, BODY),
                tags=_TAGS,
            )
        },
    }


def _submitting(path: str, name: str, summary: str, shape: str, parameters: list[Schema]) -> Schema:
    links = {one: {"operationId": one, "parameters": {"job_id": "$response.body#/id"}} for one in _FOLLOWING}
    return operation(
        name,
        summary,
        found("the job", shape, links=links) | failures.responses(path, READING, BODY, MAKING),
        tags=_TAGS,
        description="An input that is wrong makes a job that fails with a sentence, as on RunPod.",
        parameters=parameters,
        requestBody=body(json_body("Job", _JOBS)),
    )


def _asking(name: str, summary: str, shape: str, *, waits: bool = False) -> Schema:
    wrong = (400,) if waits else ()
    return operation(
        name,
        summary,
        found("the job", shape) | failures.responses("/", READING, JOB, wrong),
        tags=_TAGS,
        parameters=[JOB_ID, *([WAIT] if waits else [])],
    )


def _changing(path: str, name: str, summary: str, more: tuple[int, ...] = ()) -> Schema:
    answers = found("the job", "Taken") | failures.responses(path, READING, BODY, JOB, more)
    return operation(name, summary, answers, tags=_TAGS, parameters=[JOB_ID])
