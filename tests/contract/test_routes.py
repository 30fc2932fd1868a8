import gc
import json
import weakref
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_edit.contract import routes
from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.routes import Routed
from qwen_edit.errors import InvalidRequest
from tests.support.responses import a_response

BODY: dict[str, object] = {"image_b64": "aGVsbG8=", "prompt": "make it snow", "size": "1024x1024"}
REQUEST = EditRequest.parse(BODY)
ENVELOPES = [("openai_route", "openai_input"), ("route", "body")]


def refusal(payload: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        routes.read(payload)
    return caught.value


def test_a_plain_input_gets_the_contracts_reply() -> None:
    asked = routes.read(BODY)
    assert asked.request == REQUEST
    assert asked.answer(a_response()) == a_response().to_json()


@pytest.mark.parametrize(("route", "body"), ENVELOPES)
@pytest.mark.parametrize("path", ["/v1/images/edits", "/openai/v1/images/edits"])
def test_an_envelope_gets_openais_reply(route: str, body: str, path: str) -> None:
    asked = routes.read({route: path, body: {**BODY, "n": 1, "model": "gpt-image-1"}})
    assert asked.request == REQUEST
    reply = asked.answer(a_response())
    assert reply["data"] == [{"b64_json": "aGVsbG8="}]
    assert isinstance(reply["created"], int)
    assert json.loads(json.dumps(reply)) == reply


def test_an_envelope_may_name_its_method() -> None:
    assert routes.read({"route": "/v1/images/edits", "method": "POST", "body": BODY}).request == REQUEST


def test_a_stream_over_the_queue_is_one_reply_with_a_warning() -> None:
    asked = routes.read({"route": "/v1/images/edits", "body": {**BODY, "stream": True, "partial_images": 2}})
    assert asked.request == REQUEST.warned("stream is not used: a job of the queue has one reply")
    assert not asked.request.preview


@pytest.mark.parametrize(("route", "body"), ENVELOPES)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/images/generations", "", None, 3, ["/v1/images/edits"]])
def test_another_route_is_refused(route: str, body: str, path: object) -> None:
    error = refusal({route: path, body: BODY})
    assert error.sentence.startswith(f"{route} is ")
    assert error.sentence.endswith("expected '/v1/images/edits'")
    assert error.fields == (route,)


@pytest.mark.parametrize(("route", "body"), ENVELOPES)
@pytest.mark.parametrize("fields", [None, "x", [BODY], 3])
def test_an_envelope_without_an_object_is_refused(route: str, body: str, fields: object) -> None:
    error = refusal({route: "/v1/images/edits", body: fields})
    assert error.sentence.startswith(f"{body} is ")
    assert error.fields == (body,)


def test_a_field_beside_an_envelope_is_refused() -> None:
    error = refusal({"route": "/v1/images/edits", "body": BODY, "prompt": "x"})
    assert error.sentence == "input has 'prompt' beside route, expected body alone"


@pytest.mark.parametrize("payload", [None, [], "x", 3, {}, {"prompt": "x"}, {1: 2}])
def test_what_is_no_request_is_refused_as_the_contract_refuses_it(payload: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EditRequest.parse(payload)
    assert refusal(payload).sentence == caught.value.sentence


def test_the_answer_does_not_hold_the_request() -> None:
    for payload in (BODY, {"route": "/v1/images/edits", "body": BODY}):
        asked = routes.read(payload)
        answer, request = asked.answer, weakref.ref(asked.request)
        del asked
        gc.collect()
        assert request() is None
        assert answer(a_response())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("/v1/images/edits"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*BODY, "stream", "n"]) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(["openai_route", "openai_input", "route", "body", "method", *BODY])
ROUTES = st.sampled_from(["openai_route", "route"]).map(lambda name: {name: "/v1/images/edits"})


@given(VALUES | st.dictionaries(KEYS, VALUES, max_size=4), ROUTES | st.just({}))
def test_any_input_is_routed_or_refused(payload: object, route: dict[str, str]) -> None:
    with suppress(InvalidRequest):
        assert isinstance(routes.read({**payload, **route} if isinstance(payload, dict) else payload), Routed)
