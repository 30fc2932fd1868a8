"""A job's input over RunPod's queue: the contract's request, or the body of another route in an envelope.

RunPod's gateway puts what comes to `…/openai/v1/…` into `{"openai_route", "openai_input"}`, and its console sends
`{"route", "body"}`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen_edit.contract import openai
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.contract.sentences import shown
from qwen_edit.errors import InvalidRequest

_ENVELOPES = (("openai_route", "openai_input"), ("route", "body"))
_PREFIXES = ("", "/openai")
_NO_STREAM = "stream is not used: a job of the queue has one reply"


@dataclass(frozen=True)
class Routed:
    """A request, and how its response is written for whoever asked."""

    request: EditRequest
    answer: Callable[[EditResponse], dict[str, object]]


def read(payload: object) -> Routed:
    """Read a job's input.

    The one route that is served in an envelope is `/v1/images/edits`. `/v1/models` is refused: its answer never
    changes, and a job for it would start a worker. HTTP servers have it.

    Raises:
        InvalidRequest: not a request, or an envelope of something else.
    """
    if isinstance(payload, dict):
        for route, body in _ENVELOPES:
            if route in payload:
                return _from_envelope(payload, route, body)
    return Routed(EditRequest.parse(payload), EditResponse.to_json)


def _from_envelope(envelope: dict[object, object], route: str, body: str) -> Routed:
    _check_route(route, envelope[route])
    for name in envelope:
        if name not in (route, body, "method"):
            raise InvalidRequest(f"input has {shown(name)} beside {route}, expected {body} alone")
    fields = envelope.get(body)
    if not isinstance(fields, dict):
        raise InvalidRequest(f"{body} is {shown(fields)}, expected an object with image and prompt", body)
    asked = openai.read(fields)
    if not asked.stream:
        return Routed(asked.request, _openai_answer)
    whole = openai.read({name: value for name, value in fields.items() if name not in ("stream", "partial_images")})
    return Routed(whole.request.warned(_NO_STREAM), _openai_answer)


def _check_route(name: str, value: object) -> None:
    if value not in [prefix + openai.ROUTE for prefix in _PREFIXES]:
        raise InvalidRequest(f"{name} is {shown(value)}, expected {openai.ROUTE!r}", name)


def _openai_answer(response: EditResponse) -> dict[str, object]:
    return openai.answer(response, int(time.time()))
