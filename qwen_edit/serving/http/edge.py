"""What every request meets first: health, access, admission, and the bounds of a body. No framework is needed here.

A load balancer asks for health before the model is loaded, and many times a second; so that is answered here, at once,
while the rest of the server is still being imported.
"""

import asyncio
import json
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping

from qwen_edit.log import log
from qwen_edit.serving.http import errors
from qwen_edit.serving.http.access import is_allowed
from qwen_edit.serving.http.body import BodyError, GoneError, Message, Receive, Uploads
from qwen_edit.serving.http.errors import Refusal
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.settings import Settings

Send = Callable[[Message], Awaitable[None]]
Scope = Message
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READY_PATH, PAGE_PATH, DOCS_PATH, SCHEMA_PATH = "/health/ready", "/", "/docs", "/openapi.json"

_PINGS = {"loading": 204, "ready": 200, "failed": 503}
"""RunPod's load balancer: 200 is healthy, 204 is not yet, all else is taken out (its documentation of endpoints)."""

_MAKING_JOBS = re.compile(r"/(run|runsync|edit|v1/images/edits|retry/[^/]+)")
_PREFIX = re.compile(r"/v2/[^/]+(?=/)")
"""RunPod's clients put the endpoint's id between their base address and the operation."""

LONGEST_KEY = 200
"""Characters of a caller's own name for a job."""

_REQUEST_ID = re.compile(rb"[\w.:-]{1,100}")
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class Edge:
    """The ASGI application that the server calls."""

    def __init__(self, settings: Settings, jobs: Jobs, readiness: Readiness, app: "asyncio.Future[App]") -> None:
        """Make one.

        Args:
            app: what answers everything else, once it is imported.
        """
        self.uploads = Uploads()
        self._settings = settings
        self._jobs = jobs
        self._readiness = readiness
        self._app = app
        self._pings = {"/ping", settings.ping_path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        if path == READY_PATH or path in self._pings:
            await self._health(scope, send)
            return
        sent = _Sent(scope, send)
        try:
            await self._admitted(scope, receive, sent)
        except GoneError:
            return
        except Exception:  # the edge: a caller gets a sentence, whatever broke
            log("request failed", "error", path=path[:100], request=sent.name, traceback=traceback.format_exc())
            if not sent.has_begun:
                await _answer(sent, errors.BROKEN.status, errors.BROKEN.body(path), errors.BROKEN.headers)

    async def _health(self, scope: Scope, send: Send) -> None:
        state, is_closed = self._readiness.state, self._jobs.is_closed
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, errors.ONLY_GET.body(scope["path"]), errors.ONLY_GET.headers)
        elif scope["path"] == READY_PATH:
            await _answer(send, 200 if state == "ready" and not is_closed else 503, {"status": state}, {})
        else:
            await _empty(send, _PINGS["failed" if is_closed else state])

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        is_page = scope["path"] == PAGE_PATH and scope["method"] in ("GET", "HEAD")
        has_body = scope["method"] in _WITH_BODY
        scope = _without_prefix(scope)
        no = None
        if not (is_page or is_allowed(headers, self._settings.api_key)):
            no = errors.NO_KEY
        elif scope["method"] == "POST" and _MAKING_JOBS.fullmatch(scope["path"]):
            no = self._full(scope)
        body = b""
        if has_body and no is None:
            try:
                body = await self.uploads.read(receive, _length(headers))
            except BodyError as error:
                no = Refusal(error.status, error.code, str(error))
        if no is not None:
            await self._refuse(scope, receive, send, no, has_body=has_body)
            return
        app = await asyncio.shield(self._app)
        await app(scope, _replayed(body, receive), send)

    def _full(self, scope: Scope) -> Refusal | None:
        """Why no job is taken, known by the head alone: nobody sends a picture for nothing."""
        if len(_key(scope)) > LONGEST_KEY:
            return errors.LONG_KEY
        if self._readiness.error is not None:
            return errors.of_error(self._readiness.error)
        if self._jobs.is_closed:
            return errors.DRAINING
        if self._jobs.service.is_full and self._jobs.find_by_key(key_of(scope)) is None:
            return errors.overloaded(self._jobs.retry_after())
        return None

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, no: Refusal, *, has_body: bool) -> None:
        """Answer before the body's end, read a little of the rest, and close."""
        headers = {**no.headers, **({"connection": "close"} if has_body else {})}
        body = json.dumps(no.body(scope["path"])).encode()
        await _start(send, no.status, body, headers)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if has_body:
            await self.uploads.drain(receive)
        await send({"type": "http.response.body", "body": b""})


def key_of(scope: Scope) -> str | None:
    """The caller's own name for a job, `Idempotency-Key`, and the route: another one would answer in other words."""
    door, key = "/run" if scope["path"] == "/runsync" else scope["path"], _key(scope)
    return f"{door} {key.decode('latin-1')}" if key else None


def _key(scope: Scope) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"idempotency-key"), b"")


def _length(headers: list[tuple[bytes, bytes]]) -> int | None:
    text = next((value for name, value in headers if name == b"content-length"), b"")
    return int(text[:12]) if text.isdigit() else None


def _without_prefix(scope: Scope) -> Scope:
    path = _PREFIX.sub("", scope["path"], count=1)
    if path.startswith("/openai/v1/"):
        path = path.removeprefix("/openai")
    return {**scope, "path": path, "raw_path": path.encode()}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


class _Sent:
    """A `send` that gives each answer an `x-request-id`, and knows whether one has begun.

    The name is the caller's own, or a new one.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.name = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        self.has_begun = False
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = list(message.get("headers", ()))
            if not any(key == b"x-request-id" for key, _ in headers):
                message = {**message, "headers": [*headers, (b"x-request-id", self.name.encode("ascii"))]}
        await self._send(message)


async def _empty(send: Send, status: int) -> None:
    headers = [] if status == 204 else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, status: int, document: object, headers: Mapping[str, str]) -> None:
    body = json.dumps(document).encode()
    await _start(send, status, body, headers)
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    all_headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
