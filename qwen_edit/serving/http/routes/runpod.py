"""RunPod's queue API with the platform's semantics, for its clients: `{"input": …}` in, a job's state out.

The Python and the JavaScript package work with another base address alone. What they do with an answer is the source of
most choices here: they take only 200 for good, and the one in JavaScript asks `stream` again without a pause.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from qwen_edit import https
from qwen_edit.contract import routes
from qwen_edit.errors import EditError, InvalidRequest
from qwen_edit.serving.http.answers import Document
from qwen_edit.serving.http.edge import key_of
from qwen_edit.serving.http.requests import read_json
from qwen_edit.serving.http.waiting import until_change, until_end
from qwen_edit.serving.jobs.job import EXECUTION_S, RUN_KEPT_S, SYNC_KEPT_S, TTL_S, Job, Order, Policy
from qwen_edit.serving.jobs.table import Jobs

WAIT_S, LEAST_WAIT_S, MOST_WAIT_S = 90.0, 1.0, 300.0
"""Of `runsync`: the platform's default and bounds."""

STREAM_S = 10.0
"""How long `stream` waits for news."""

SYNC = "sync-"
"""How the platform's ids of `runsync` begin."""

WORKER = secrets.token_hex(7)
"""This process, as `workerId`."""

_POLICY = {"executionTimeout": EXECUTION_S, "ttl": TTL_S}
_FIELDS = ("input", "policy", "webhook", "webhookV2", "s3Config")


@dataclass(frozen=True)
class Kind:
    """How a job of `run` or `runsync` is named and kept."""

    door: str
    prefix: str
    kept_s: float


RUN, RUNSYNC = Kind("run", "", RUN_KEPT_S), Kind("runsync", SYNC, SYNC_KEPT_S)


class RunPodRoutes:
    """The operations of the API."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._settings = jobs.service.settings

    async def run(self, request: Request) -> Response:
        """Take a job and answer at once."""
        job = await self._submitted(request, RUN)
        job.listeners += 1  # for good: its caller asks for it later
        return Document({"id": job.id, "status": "IN_QUEUE"})

    async def runsync(self, request: Request) -> Response:
        """Take a job and wait for its end."""
        seconds = _seconds(request)
        job = await self._submitted(request, RUNSYNC)
        job.listeners += 1
        try:
            is_over = await until_end(request, job, seconds)
        except BaseException:
            self._jobs.leave(job)
            raise
        if is_over:
            self._jobs.leave(job)  # else the caller has its id from now on, and may ask for it later
        return Document(state_of(job))

    async def status(self, request: Request) -> Response:
        """How far a job is, and its result."""
        return Document(state_of(self._job(request)))

    async def status_sync(self, request: Request) -> Response:
        """As `status`, after its end or a while."""
        job = self._job(request)
        await until_end(request, job, _seconds(request))
        return Document(state_of(job))

    async def stream(self, request: Request) -> Response:
        """The updates that nobody has taken yet, after the next one or a while."""
        job = self._job(request)
        if not job.updates and not job.is_final:
            await until_change(job, STREAM_S)
        return Document({"status": job.status, "stream": [{"output": update} for update in job.take_updates()]})

    async def cancel(self, request: Request) -> Response:
        """Stop a job."""
        job = self._job(request)
        if not job.is_final:
            self._jobs.cancel(job)
            await until_change(job, 1.0)
        return Document({"id": job.id, "status": job.status})

    async def retry(self, request: Request) -> Response:
        """Run a job that failed once more."""
        job = self._job(request)
        if not self._jobs.retry(job):
            raise InvalidRequest(f"the job is {job.status}, expected FAILED or TIMED_OUT, and an input that was taken")
        return Document({"id": job.id, "status": job.status})

    async def purge_queue(self, request: Request) -> Response:  # noqa: ARG002 - a route's
        """Stop all jobs that have not begun."""
        return Document({"removed": self._jobs.purge(), "status": "completed"})

    def _job(self, request: Request) -> Job:
        return found(self._jobs, request.path_params["job_id"])

    async def _submitted(self, request: Request, kind: Kind) -> Job:
        body = _body(await read_json(request))
        policy, webhook = _policy(body), self._webhook(body)
        key = key_of(request.scope)
        if (known := self._jobs.find_by_key(key)) is not None:
            return known
        try:
            routed = routes.read(body["input"])
        except EditError as error:  # the platform takes any input, and the job fails
            return self._jobs.refuse(error, kind.prefix)
        order = Order(
            kind.door,
            routed.request,
            routed.answer,
            limit=self._settings.http_limit,
            kept_s=kind.kept_s,
            policy=policy,
            webhook=webhook,
            key=key,
        )
        return self._jobs.submit(order, kind.prefix)

    def _webhook(self, body: Mapping[str, Any]) -> str | None:
        url = ""
        for given in (body.get("webhook"), body.get("webhookV2")):
            if given is not None and not isinstance(given, str):
                raise InvalidRequest("webhook is not a string, expected an https:// URL", "webhook")
            url = url or given or ""
        if not url:
            return None
        if not self._settings.allow_webhooks:
            raise InvalidRequest("webhook is not served here, unless QWEN_EDIT_ALLOW_WEBHOOKS is 1", "webhook")
        try:
            https.check(url)
        except https.AddressError as error:
            raise InvalidRequest(f"webhook is {error}", "webhook") from None
        return url


class UnknownJobError(Exception):
    """There is no job of this id, or its time is over."""


def found(jobs: Jobs, job_id: str) -> Job:
    """The job of an id.

    Raises:
        UnknownJobError: there is none.
    """
    job = jobs.find(job_id)
    if job is None:
        raise UnknownJobError
    return job


def state_of(job: Job) -> dict[str, object]:
    """A job as the platform describes it."""
    state: dict[str, object] = {"id": job.id, "status": job.status}
    if job.delay_ms is not None:
        state["delayTime"] = job.delay_ms
    if job.execution_ms is not None:
        state["executionTime"] = job.execution_ms
    if job.started is not None:
        state["workerId"] = WORKER
    if job.result is not None:
        state["output"] = job.result.output
    if job.error is not None:
        state["error"] = str(job.error)
    if job.is_let_go:
        state["error"] = "internal: the result was let go to make room for later ones"
    return state


def _body(document: object) -> Mapping[str, Any]:
    if not isinstance(document, dict) or "input" not in document:
        raise InvalidRequest('the body has no input, expected {"input": {"image": …, "prompt": …}}', "input")
    for name in document:
        if name not in _FIELDS:
            raise InvalidRequest(f"{name[:40]!r} is not a field beside input, expected policy or webhook")
    if document.get("s3Config"):
        raise InvalidRequest("s3Config is not served, expected a bucket of the worker's own", "s3Config")
    return document


def _policy(body: Mapping[str, Any]) -> Policy:
    given = {} if body.get("policy") is None else body["policy"]
    if not isinstance(given, dict):
        raise InvalidRequest("policy is not an object, expected executionTimeout and ttl in milliseconds", "policy")
    return Policy(*(_milliseconds(given, name, usual) for name, usual in _POLICY.items()))


def _milliseconds(given: Mapping[str, Any], name: str, usual: float) -> float:
    value = given.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 7 * 24 * 3600 * 1000:
        raise InvalidRequest(f"policy.{name} is not a number of milliseconds up to a week", "policy")
    return float(value) / 1000


def _seconds(request: Request) -> float:
    text = request.query_params.get("wait")
    if text is None:
        return WAIT_S
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest("wait is not a whole number of milliseconds", "wait")
    return min(MOST_WAIT_S, max(LEAST_WAIT_S, int(text) / 1000))
