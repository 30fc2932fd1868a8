"""OpenAI's `POST /v1/images/edits`, in one reply or as a stream, and `GET /v1/models`."""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from qwen_edit.contract import openai
from qwen_edit.edit.hooks import Step
from qwen_edit.errors import EditError, InvalidRequest
from qwen_edit.serving.http.answers import Document, parts_of, pieces_of
from qwen_edit.serving.http.edge import key_of
from qwen_edit.serving.http.errors import OPENAI, of_error
from qwen_edit.serving.http.requests import is_form, read_form, read_json
from qwen_edit.serving.http.waiting import listening, until_change, until_end
from qwen_edit.serving.jobs.job import Job, Order, kept_for
from qwen_edit.serving.jobs.table import Jobs

KEEP_ALIVE_S = 10.0
"""Between two comments of a stream without news: proxies close what is silent."""

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class OpenAIRoutes:
    """What OpenAI's clients ask."""

    def __init__(self, jobs: Jobs, started: int) -> None:
        """Make them.

        Args:
            started: seconds since 1970, as which the model was made.
        """
        self._jobs = jobs
        self._started = started

    async def models(self, request: Request) -> Response:  # noqa: ARG002 - a route's
        """The one model."""
        return Document(openai.models(self._started))

    async def edits(self, request: Request) -> Response:
        """Edit a picture."""
        asked = await read_asked(request)
        key = key_of(request.scope)
        created = int(time.time())
        job = self._jobs.find_by_key(key) or self._jobs.submit(
            Order(
                "openai",
                asked.request,
                partial(openai.answer, created=created),
                limit=self._jobs.service.settings.http_limit,
                kept_s=kept_for(key),
                with_preview=evenly(asked.partial_images),
                key=key,
            )
        )
        headers = {"x-request-id": job.id}
        if asked.stream:
            stream = self._events(job, created)
            return StreamingResponse(stream, headers=headers | _STREAM_HEADERS, media_type="text/event-stream")
        with listening(self._jobs, job):
            await until_end(request, job)
        return Document(job.outcome().output, headers=headers)

    async def _events(self, job: Job, created: int) -> AsyncIterator[bytes]:
        """The events of a job, as server-sent events; whoever stops to read stops the job."""
        number = 0
        with listening(self._jobs, job):
            while True:
                for update in job.take_updates():
                    if "preview" in update:
                        yield _event(openai.partial(update["preview"], number, created))
                        number += 1
                if job.is_final:
                    break
                await until_change(job, KEEP_ALIVE_S)
                if not job.updates and not job.is_final:
                    yield b": keep-alive\n\n"
        try:
            response = job.outcome().response
        except EditError as error:
            yield _event(of_error(error).body(OPENAI))
            return
        for picture in range(len(response.images or response.urls or ())):
            for piece in _pieces(openai.completed(response, picture, created)):
                yield piece
        yield b"data: [DONE]\n\n"


async def read_asked(request: Request) -> openai.Asked:
    """An edit in OpenAI's words, out of a form or JSON.

    Raises:
        InvalidRequest: see `openai.read`.
    """
    if is_form(request):
        form = await read_form(request)
        return openai.read(form.fields, form.images, from_text=True)
    document = await read_json(request)
    if not isinstance(document, dict):
        raise InvalidRequest("the body is not an object, expected image and prompt")
    return openai.read(document)


def evenly(number: int) -> Callable[[Step], bool]:
    """A choice of so many steps, evenly spaced, none of them the last."""

    def with_preview(step: Step) -> bool:
        passed, before = (number + 1) * step.number // step.steps, (number + 1) * (step.number - 1) // step.steps
        return number > 0 and passed > before and step.number < step.steps

    return with_preview


def _event(document: object) -> bytes:
    return b"".join(_pieces(document))


def _pieces(document: dict[str, object] | object) -> list[bytes]:
    kind = document.get("type") if isinstance(document, dict) else None
    head = f"event: {kind}\n".encode() if isinstance(kind, str) else b""
    return [head + b"data: ", *pieces_of(parts_of(document)), b"\n\n"]
