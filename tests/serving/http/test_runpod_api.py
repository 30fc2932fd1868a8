"""RunPod's API over HTTP, asked by hand: states, stops, repeats, and what is wrong with a body."""

from typing import Any

import pytest

from tests.support.gates import Gate
from tests.support.http_worker import HttpWorker

Job = dict[str, Any]


def submit(server: HttpWorker, fields: Job, **more: object) -> str:
    answer = server.ask("/run", {"input": fields, **more})
    assert (answer.status, answer.json()["status"]) == (200, "IN_QUEUE")
    job_id: str = answer.json()["id"]
    return job_id


def test_a_job_that_is_waited_for_comes_with_its_picture_and_times(server: HttpWorker, good: Job) -> None:
    state = server.ask("/runsync", {"input": good}).json()

    assert state["id"].startswith("sync-")
    assert state["status"] == "COMPLETED"
    assert state["output"]["seed"] == 5
    assert state["output"]["image"] == state["output"]["images"][0]
    assert state["executionTime"] > 0
    assert state["delayTime"] >= 0


@pytest.mark.parametrize("prefix", ["", "/v2/any-endpoint"])
def test_a_job_runs_beside_its_callers_questions(server: HttpWorker, good: Job, gate: Gate, prefix: str) -> None:
    job_id = submit(server, {**good, "prompt": f"gate {gate.port}"})
    gate.reached()

    running = server.ask(f"{prefix}/status/{job_id}").json()
    gate.open()

    assert (running["id"], running["status"]) == (job_id, "IN_PROGRESS")
    assert server.final(job_id)["status"] == "COMPLETED"


def test_a_stream_tells_each_step_once_and_then_that_it_is_over(server: HttpWorker, good: Job) -> None:
    job_id = submit(server, {**good, "preview": True})

    told, status = [], "IN_QUEUE"
    while status in ("IN_QUEUE", "IN_PROGRESS"):
        news = server.ask(f"/stream/{job_id}").json()
        status = news["status"]
        told += [chunk["output"]["step"] for chunk in news["stream"]]

    assert status == "COMPLETED"
    assert told == sorted(set(told))
    assert server.ask(f"/stream/{job_id}").json()["stream"] == []


def test_a_wait_that_is_too_short_brings_the_job_to_ask_for_later(server: HttpWorker, good: Job, gate: Gate) -> None:
    state = server.ask("/runsync?wait=1000", {"input": {**good, "prompt": f"gate {gate.port}"}}).json()
    gate.open()

    assert state["status"] == "IN_PROGRESS"
    assert "output" not in state
    assert server.final(state["id"])["status"] == "COMPLETED"


def test_a_job_is_stopped_on_the_device_and_in_the_queue(server: HttpWorker, good: Job, gate: Gate) -> None:
    held = submit(server, {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    waiting = submit(server, good)

    assert server.ask(f"/cancel/{waiting}", {}).json() == {"id": waiting, "status": "CANCELLED"}
    assert server.ask(f"/cancel/{held}", method="POST").json() == {"id": held, "status": "CANCELLED"}
    assert server.ask("/runsync", {"input": good}).json()["status"] == "COMPLETED"  # behind one that never ended


def test_all_that_waits_can_be_stopped_at_once(server: HttpWorker, good: Job, gate: Gate) -> None:
    held = submit(server, {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    decoded, waiting = submit(server, good), submit(server, good)

    answer = server.ask("/purge-queue", {}).json()
    gate.open()

    assert answer == {"removed": 1, "status": "completed"}
    assert [server.final(job)["status"] for job in (held, decoded, waiting)] == ["COMPLETED", "COMPLETED", "CANCELLED"]


def test_a_wrong_input_fails_its_job_with_a_sentence_as_the_platform_does(server: HttpWorker, good: Job) -> None:
    state = server.ask("/runsync", {"input": {**good, "rank": 7}}).json()

    assert state["status"] == "FAILED"
    assert state["error"].startswith("invalid_request: rank is 7, expected ")
    assert "output" not in state
    assert server.ask(f"/retry/{state['id']}", {}).status == 400


def test_a_job_that_failed_runs_again_with_the_same_id(server: HttpWorker, good: Job) -> None:
    job_id = submit(server, {**good, "prompt": "fail"})
    failed = server.final(job_id)

    again = server.ask(f"/retry/{job_id}", {}).json()

    assert failed["error"] == f"internal: the edit failed; the worker's log has the details under job {job_id}"
    assert again == {"id": job_id, "status": "IN_QUEUE"}
    assert server.final(job_id)["status"] == "FAILED"
    assert server.ask("/health").json()["jobs"]["retried"] >= 1


def test_a_job_that_runs_longer_than_its_policy_allows_is_timed_out(server: HttpWorker, good: Job, gate: Gate) -> None:
    job_id = submit(server, {**good, "prompt": f"gate {gate.port}"}, policy={"executionTimeout": 1500})
    gate.reached()

    state = server.final(job_id)

    assert state["status"] == "TIMED_OUT"
    assert "executionTimeout of 1,500 ms" in state["error"]


def test_a_job_that_waits_longer_than_its_life_is_timed_out(server: HttpWorker, good: Job, gate: Gate) -> None:
    held = submit(server, {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    server.ask("/run", {"input": good})
    job_id = submit(server, good, policy={"ttl": 200})

    state = server.final(job_id)
    gate.open()

    assert state["status"] == "TIMED_OUT"
    assert "ttl of 200 ms" in state["error"]
    assert server.final(held)["status"] == "COMPLETED"


def test_beyond_the_places_a_job_is_refused_with_the_seconds_to_wait(server: HttpWorker, good: Job, gate: Gate) -> None:
    jobs = [submit(server, {**good, "prompt": f"gate {gate.port}"})]
    gate.reached()
    jobs += [submit(server, good) for _ in range(2)]

    refused = server.ask("/run", {"input": good})
    gate.open()

    assert refused.status == 429
    assert refused.json()["error"].startswith("overloaded: every place is taken; send it again in ")
    assert 1 <= int(refused.headers["retry-after"]) <= 120
    assert [server.final(job)["status"] for job in jobs] == ["COMPLETED"] * 3


def test_the_same_key_finds_the_job_that_runs_already(server: HttpWorker, good: Job, gate: Gate) -> None:
    fields = {**good, "prompt": f"gate {gate.port}"}
    first = server.ask("/run", {"input": fields}, idempotency_key="mine").json()
    gate.reached()

    second = server.ask("/runsync?wait=1000", {"input": fields}, idempotency_key="mine").json()
    gate.open()

    assert second["id"] == first["id"]
    assert server.final(first["id"])["status"] == "COMPLETED"


@pytest.mark.parametrize("path", ["status", "status-sync", "stream"])
def test_an_unknown_job_is_not_found(server: HttpWorker, path: str) -> None:
    answer = server.ask(f"/{path}/none")

    assert answer.status == 404
    assert answer.json()["error"].startswith("not_found: ")


BAD_BODIES = {
    "nothing": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "no input": b'{"image": "x"}',
    "an unknown field beside it": b'{"input": {}, "polcy": {}}',
    "a policy that is none": b'{"input": {}, "policy": 5}',
    "a time that is none": b'{"input": {}, "policy": {"ttl": "soon"}}',
    "a webhook": b'{"input": {}, "webhook": "https://a.test/"}',
    "a store": b'{"input": {}, "s3Config": {"bucketName": "x"}}',
    "brackets without end": b"[" * 100_000,
    "a number without end": b'{"input": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_wrong_body_is_refused_with_a_sentence(server: HttpWorker, name: str) -> None:
    answer = server.ask("/run", BAD_BODIES[name])

    assert answer.status == 400
    assert answer.json()["error"].startswith("invalid_request: ")


def test_health_counts_the_jobs_and_the_one_worker_as_the_platform_does(server: HttpWorker) -> None:
    health = server.ask("/health").json()

    assert health["jobs"].keys() == {"completed", "failed", "inProgress", "inQueue", "retried"}
    assert health["workers"]["ready"] == 1
    assert health["queue"]["places"] == 3
    assert health["memory"]["resident_bytes"] > 0
