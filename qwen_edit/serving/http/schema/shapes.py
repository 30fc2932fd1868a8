"""What is answered: the contract's response, a job's state, OpenAI's reply, and what a worker says about itself."""

from typing import Any, get_args

from qwen_edit.contract.response import EditResponse
from qwen_edit.serving.http.schema import failures, fields
from qwen_edit.serving.jobs.job import Status

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NULLABLE: Schema = {"type": ["string", "null"]}
_STATUS: Schema = {"enum": [*get_args(Status)]}
_SECONDS: Schema = {"type": "integer", "minimum": 0, "description": "seconds since 1970"}


def components() -> dict[str, Schema]:
    """The schemas by their names."""
    response = EditResponse.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    parts = response.pop("$defs")
    return {
        "Picture": fields.picture(),
        "EditRequest": fields.contract(),
        "OpenAIEdit": fields.openai(),
        "EditForm": fields.form(),
        "Job": _job(),
        "EditResponse": response,
        **parts,
        "State": _state(),
        "Taken": _object({"id": _TEXT, "status": _STATUS}),
        "News": _object({"status": _STATUS, "stream": _list(_object({"output": {"type": "object"}}))}),
        "Purged": _object({"removed": _COUNT, "status": {"const": "completed"}}),
        "OpenAIReply": _openai_reply(response["properties"]),
        "Models": _models(),
        "Health": _health(),
        "ModelInfoReply": _model_info(),
        "Ready": _object({"status": {"enum": ["loading", "ready", "failed"]}}),
        "Error": failures.ERROR,
        "OpenAIError": failures.OPENAI_ERROR,
    }


def reference(name: str) -> Schema:
    """A reference to one of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def _job() -> Schema:
    milliseconds: Schema = {"type": ["number", "null"], "minimum": 1, "maximum": 7 * 24 * 3600 * 1000}
    envelope = _object({"openai_route": _TEXT, "openai_input": reference("OpenAIEdit")})
    anything: Schema = {"description": "anything else is taken as well, and its job fails with a sentence"}
    job = _object(
        {
            "input": {"anyOf": [reference("EditRequest"), envelope, anything]},
            "policy": {
                "type": ["object", "null"],
                "properties": {"executionTimeout": milliseconds, "ttl": milliseconds},
                "description": "the longest run and the longest life of the job, in milliseconds",
            },
            "webhook": {
                **_NULLABLE,
                "description": "an https:// URL that is told of the end, where QWEN_EDIT_ALLOW_WEBHOOKS is 1",
            },
            "webhookV2": {**_NULLABLE, "description": "another name of webhook"},
            "s3Config": {"enum": [None, False, 0, "", [], {}], "description": "not served"},
        }
    )
    return {**job, "required": ["input"]}


def _state() -> Schema:
    state = _object(
        {
            "id": _TEXT,
            "status": _STATUS,
            "delayTime": {**_COUNT, "description": "milliseconds in the queue"},
            "executionTime": {**_COUNT, "description": "milliseconds from the queue to the end"},
            "workerId": _TEXT,
            "output": {"anyOf": [reference("EditResponse"), reference("OpenAIReply")]},
            "error": {**_TEXT, "description": "a code, a colon and one sentence"},
        }
    )
    return {**state, "required": ["id", "status"]}


def _openai_reply(response: dict[str, Schema]) -> Schema:
    picture: Schema = {
        "type": "object",
        "properties": {"b64_json": _TEXT, "url": _TEXT},
        "minProperties": 1,
        "additionalProperties": False,
    }
    return _object(
        {
            "created": _SECONDS,
            "data": _list(picture),
            "background": {"const": "opaque"},
            "output_format": response["format"],
            "size": _TEXT,
            **{name: response[name] for name in ("seed", "model_config", "timings", "warnings")},
        }
    )


def _models() -> Schema:
    model = _object({"id": _TEXT, "object": {"const": "model"}, "created": _SECONDS, "owned_by": _TEXT})
    return _object({"object": {"const": "list"}, "data": _list(model)})


def _health() -> Schema:
    workers = ("idle", "initializing", "ready", "running", "throttled", "unhealthy")
    memory = _object({"resident_bytes": _COUNT, "gpu_allocated_bytes": _COUNT})
    return _object(
        {
            "jobs": _counts("completed", "failed", "inProgress", "inQueue", "retried"),
            "workers": _counts(*workers),
            "queue": _counts("length", "places"),
            "uptime": {"type": "number", "description": "seconds"},
            "memory": {**memory, "required": ["resident_bytes"], "additionalProperties": _COUNT},
        }
    )


def _model_info() -> Schema:
    checkpoint = _object(
        {
            "name": _TEXT,
            "file": _TEXT,
            "steps": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
            "default_steps": _COUNT,
            "rank": _COUNT,
            "bytes": _COUNT,
            "repository": _NULLABLE,
            "revision": _NULLABLE,
            "sha256": _NULLABLE,
        }
    )
    info: Schema = {
        "type": "object",
        "description": "The state and the choices of this worker; what is known once it has loaded comes beside these.",
        "properties": {
            "state": {"enum": ["loading", "ready", "failed"]},
            "worker_version": _TEXT,
            "error": _TEXT,
            "checkpoints": _list(checkpoint),
            "versions": {"type": "object", "additionalProperties": _TEXT},
        },
    }
    return {**info, "required": ["state", "worker_version", "checkpoints", "versions"]}


def _counts(*names: str) -> Schema:
    return _object(dict.fromkeys(names, _COUNT))


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _object(properties: dict[str, Schema]) -> Schema:
    """An object that has all of these and no others."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
