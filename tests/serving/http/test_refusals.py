"""What is refused rather than read in a way that nobody asked for."""

from typing import Any

import pytest

from qwen_edit.serving.http.schema import examples
from tests.support.http_worker import HttpWorker

JOB = {"input": examples.EDIT}


@pytest.mark.parametrize("path", ["/ping", "/health/ready"])
def test_health_takes_no_other_method_and_says_which(server: HttpWorker, path: str) -> None:
    answer = server.ask(path, {})

    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_a_callers_key_names_a_job_of_one_route_because_another_answers_in_other_words(server: HttpWorker) -> None:
    job = server.ask("/runsync", JOB, idempotency_key="same").json()

    again = server.ask("/runsync", JOB, idempotency_key="same").json()
    reply = server.ask("/v1/images/edits", examples.OPENAI, idempotency_key="same").json()

    assert again["id"] == job["id"]
    assert reply.keys() >= {"created", "data"}


def test_a_callers_key_that_is_too_long_is_refused_because_a_part_of_it_may_be_anothers(server: HttpWorker) -> None:
    assert server.ask("/run", JOB, idempotency_key="k" * 200).status == 200
    answer = server.ask("/run", JOB, idempotency_key="k" * 201)

    assert answer.status == 400
    assert answer.json()["error"].startswith("invalid_request: Idempotency-Key is too long, ")


@pytest.mark.parametrize(
    "wrong", [{"webhookV2": {}}, {"webhook": 0}, {"policy": []}, {"policy": ""}, {"policy": False}], ids=str
)
def test_a_field_beside_the_input_of_a_wrong_type_is_refused_also_when_it_is_empty(
    server: HttpWorker, wrong: dict[str, Any]
) -> None:
    assert server.ask("/run", {**JOB, **wrong}).status == 400


def test_a_wrong_body_is_refused_also_where_its_key_is_known(server: HttpWorker) -> None:
    server.ask("/runsync", JOB, idempotency_key="known")

    assert server.ask("/runsync", b"[]", idempotency_key="known").status == 400


def test_a_wait_without_a_number_is_refused(server: HttpWorker) -> None:
    assert server.ask("/runsync?wait=", JOB).status == 400


@pytest.mark.parametrize(("query", "word"), [("steps=8", "query"), ("receipt=no", "receipt")])
def test_a_query_that_would_be_left_unread_is_refused(server: HttpWorker, query: str, word: str) -> None:
    answer = server.ask(f"/edit?{query}", examples.OPENAI)

    assert answer.status == 400
    assert word in answer.json()["error"]
