"""The routes behind the edge, and the words of their errors. This imports the framework, beside the load."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwen_edit.errors import EditError
from qwen_edit.serving.failures import OverloadedError
from qwen_edit.serving.http import errors, page
from qwen_edit.serving.http.answers import Document
from qwen_edit.serving.http.body import GoneError
from qwen_edit.serving.http.edge import DOCS_PATH, PAGE_PATH, SCHEMA_PATH, App
from qwen_edit.serving.http.errors import Refusal
from qwen_edit.serving.http.page import Page
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.http.routes.about import AboutRoutes
from qwen_edit.serving.http.routes.metrics import Metrics
from qwen_edit.serving.http.routes.openai import OpenAIRoutes
from qwen_edit.serving.http.routes.picture import PictureRoute
from qwen_edit.serving.http.routes.runpod import RunPodRoutes, UnknownJobError
from qwen_edit.serving.http.routes.webhook import Webhooks
from qwen_edit.serving.http.schema import docs
from qwen_edit.serving.http.schema.document import document
from qwen_edit.serving.jobs.table import Jobs

_UNKNOWN_JOB = Refusal(404, "not_found", "there is no job of this id, or its result is no longer kept")
_WORDS = {404: "there is no such path", 405: "the path does not take this method"}


def build(jobs: Jobs, readiness: Readiness) -> App:
    """The application behind the edge."""
    app = _Described(has_key=jobs.service.settings.api_key is not None)
    about = AboutRoutes(jobs, readiness, jobs.service.load())
    metrics = Metrics(jobs, about)
    jobs.hear(metrics.heard)
    Webhooks(jobs)
    _add_runpod(app, RunPodRoutes(jobs))
    openai = OpenAIRoutes(jobs, int(time.time()))
    _add(app, "POST", "/v1/images/edits", openai.edits)
    _add(app, "GET", "/v1/models", openai.models)
    _add(app, "POST", "/edit", PictureRoute(jobs).edit)
    _add(app, "GET", "/health", about.health)
    _add(app, "GET", "/model-info", about.model_info)
    _add(app, "GET", "/metrics", metrics.metrics)
    app.add_api_route(PAGE_PATH, partial(_shown, page.load), methods=["GET", "HEAD"])
    app.add_api_route(DOCS_PATH, partial(_shown, app.docs), methods=["GET", "HEAD"])
    for kind, answer in _answers(jobs).items():
        app.add_exception_handler(kind, answer)
    return app


class _Described(FastAPI):
    """The framework's, with our description in place of the one that it derives."""

    def __init__(self, *, has_key: bool) -> None:
        super().__init__(openapi_url=SCHEMA_PATH, docs_url=None, redoc_url=None, redirect_slashes=False)
        self._has_key = has_key

    def openapi(self) -> dict[str, Any]:
        """See `schema.document`."""
        return document(has_key=self._has_key)

    def docs(self) -> Page:
        """The description as a page."""
        return docs.page(has_key=self._has_key)


async def _shown(load: Callable[[], Page], request: Request) -> Response:
    held = load()
    is_known = request.headers.get("if-none-match") == held.headers["ETag"]
    return Response(b"" if is_known else held.body, 304 if is_known else 200, held.headers)


def _add_runpod(app: FastAPI, routes: RunPodRoutes) -> None:
    _add(app, "POST", "/run", routes.run)
    _add(app, "POST", "/runsync", routes.runsync)
    _add(app, "GET", "/status/{job_id}", routes.status)
    _add(app, "GET", "/status-sync/{job_id}", routes.status_sync)
    _add(app, "GET", "/stream/{job_id}", routes.stream)
    _add(app, "POST", "/cancel/{job_id}", routes.cancel)
    _add(app, "POST", "/retry/{job_id}", routes.retry)
    _add(app, "POST", "/purge-queue", routes.purge_queue)


def _add(app: FastAPI, method: str, path: str, endpoint: Callable[[Request], Any]) -> None:
    app.add_api_route(path, endpoint, methods=[method], response_model=None)


def _answers(jobs: Jobs) -> Mapping[type[Exception], Callable[[Request, Exception], Response]]:
    """What is raised in a route → its answer."""

    def of_edit(request: Request, error: Exception) -> Response:
        return _answer(request, errors.of_error(error) if isinstance(error, EditError) else errors.BROKEN)

    def of_overload(request: Request, _error: Exception) -> Response:
        return _answer(request, errors.DRAINING if jobs.is_closed else errors.overloaded(jobs.retry_after()))

    def of_unknown(request: Request, _error: Exception) -> Response:
        return _answer(request, _UNKNOWN_JOB)

    def of_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    def of_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = dict(getattr(error, "headers", None) or {})
        return _answer(request, Refusal(status, "invalid_request", _WORDS.get(status, "not served"), headers=headers))

    return {
        EditError: of_edit,
        OverloadedError: of_overload,
        UnknownJobError: of_unknown,
        GoneError: of_gone,
        HTTPException: of_http,
        Exception: of_edit,
    }


def _answer(request: Request, no: Refusal) -> Response:
    return Document(no.body(request.url.path), no.status, no.headers)
