"""What every request meets first: health while it loads, keys, bounds, and heads that nobody honest sends."""

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_edit.errors import InternalError
from qwen_edit.serving.failures import LeftError
from qwen_edit.serving.http import errors
from qwen_edit.serving.http.edge import Edge
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings
from tests.support.gates import Gate
from tests.support.http_worker import FAKE, HttpWorker, free_port, serving
from tests.support.loop_worker import launched
from tests.support.patience import PATIENCE
from tests.support.places import ROOT

Job = dict[str, Any]
KEY = "correct-horse-battery"
FORM = "multipart/form-data; boundary=b"


@pytest.fixture(scope="module")
def locked(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpWorker]:
    """A worker that asks for a key, and answers health on a port and a path of its own too."""
    with serving(
        models,
        tmp_path_factory.mktemp("locked"),
        QWEN_EDIT_API_KEY=KEY,
        PORT_HEALTH=str(free_port()),
        HEALTH_CHECK_PATH="/healthz",
        QWEN_EDIT_CORS_ORIGINS="https://a.test",
    ) as worker:
        yield worker


def raw(server: HttpWorker, sent: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(sent)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_health_is_told_while_the_model_loads_and_when_it_cannot_be_loaded(tmp_path: Path) -> None:
    port = free_port()
    with launched(tmp_path / "none", tmp_path / "worker", *FAKE, PORT=str(port), QWEN_EDIT_MODE="http") as worker:
        worker.wait_for_event("listening")
        server = HttpWorker(worker, port)
        worker.wait_for_event("not ready")

        assert server.ask("/ping").status == 503
        assert server.ask("/health/ready").status == 503
        refused = server.ask("/run", {"input": {}})
        assert refused.status == 503
        assert refused.json()["error"].startswith("model_unavailable: ")
        assert refused.headers["x-should-retry"] == "false"
        info = server.ask("/model-info").json()
        assert (info["state"], info["checkpoints"]) == ("failed", [])


def test_a_worker_that_is_ready_says_so(server: HttpWorker) -> None:
    assert (server.ask("/ping").status, server.ask("/ping", method="HEAD").status) == (200, 200)
    assert server.ask("/health/ready").json() == {"status": "ready"}


def test_the_model_is_described_as_in_a_reply(server: HttpWorker, good: Job) -> None:
    info = server.ask("/model-info").json()
    reply = server.ask("/runsync", {"input": good}).json()["output"]["model_config"]

    assert {name: info[name] for name in reply} == reply
    assert info["state"] == "ready"
    assert [one["name"] for one in info["checkpoints"]] == ["lightning", "original"]
    assert all(one["bytes"] > 0 and one["sha256"] for one in info["checkpoints"])
    assert info["versions"]["torch"]


@pytest.mark.parametrize(
    "path",
    [
        *("/run", "/health", "/v1/models", "/metrics", "/model-info", "/docs", "/openapi.json"),
        *("/ping/", "//ping", "/x/../ping", "/v2/x/ping", "/v2/x/"),
    ],
)
def test_without_the_key_nothing_but_health_is_told(locked: HttpWorker, path: str) -> None:
    answer = locked.ask(path)

    assert answer.status == 401
    assert KEY not in answer.body.decode()


@pytest.mark.parametrize("path", ["/ping", "/healthz", "/health/ready", "/"])
def test_health_and_the_pages_file_need_no_key(locked: HttpWorker, path: str) -> None:
    assert locked.ask(path).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": KEY},
        {"x_api_key": KEY},
        {"authorization": f"bearer  {KEY}"},
    ],
)
def test_the_key_is_taken_in_each_way_that_clients_have(locked: HttpWorker, headers: dict[str, str]) -> None:
    assert locked.ask("/v1/models", **headers).status == 200


@pytest.mark.parametrize("key", ["", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY[:-1], "Bearer \xff"])
def test_another_key_is_refused(locked: HttpWorker, key: str) -> None:
    assert locked.ask("/v1/models", authorization=key).json()["error"]["type"] == "authentication_error"


def test_browsers_elsewhere_may_ask_from_the_origins_that_are_set_alone(locked: HttpWorker) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "authorization"}

    allowed = locked.ask("/run", method="OPTIONS", origin="https://a.test", **asked)
    other = locked.ask("/run", method="OPTIONS", origin="https://b.test", **asked)

    assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, "https://a.test")
    assert "access-control-allow-origin" not in other.headers
    refused = locked.ask("/health", origin="https://a.test")
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://a.test")


def test_a_server_whose_packages_cannot_be_imported_ends_and_says_so(models: Path, tmp_path: Path) -> None:
    hidden = {"PYTHONPATH": str(ROOT / "tests" / "support" / "only_locked"), "QWEN_TEST_HIDDEN": "fastapi"}
    settings = {"PORT": str(free_port()), "QWEN_EDIT_MODE": "http"}
    with launched(models, tmp_path, *FAKE, **hidden, **settings) as worker:
        event = worker.wait_for_event("no routes")

        assert event["error"].startswith("ModuleNotFoundError: ")
        assert worker.process.wait(PATIENCE) == 1


def test_what_nobody_foresaw_is_a_sentence_and_a_traceback_in_the_log(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[Any] = []

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def ask() -> None:
        service = Service(Settings(models=models))
        app = asyncio.get_running_loop().create_future()
        app.set_result(broken)
        edge = Edge(service.settings, Jobs(service), Readiness(service), app)
        headers = [(b"x-request-id", b"mine")]
        await edge({"type": "http", "method": "GET", "path": "/health", "headers": headers}, receive, send)

    asyncio.run(ask())

    assert sent[0]["status"] == 500
    assert json.loads(sent[1]["body"])["error"].startswith("internal: the request failed; ")
    (event,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (event["event"], event["request"]) == ("request failed", "mine")
    assert "a secret" in event["traceback"]


def test_a_job_that_the_lost_device_left_may_be_sent_again_and_no_other_failure() -> None:
    left, failed = errors.of_error(LeftError("x")), errors.of_error(InternalError("x"))

    assert (left.status, "x-should-retry" in left.headers) == (503, False)
    assert (failed.status, failed.headers["x-should-retry"]) == (500, "false")


def test_a_body_that_says_it_is_too_long_is_refused_before_it_is_read(server: HttpWorker) -> None:
    head = b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 30000001\r\n\r\n"

    answer = raw(server, head + b"{" * 1_000_000)

    assert b" 413 " in answer.splitlines()[0]
    assert b"expected at most 30,000,000 bytes" in answer


def test_a_body_that_does_not_say_its_length_is_counted(server: HttpWorker) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(b"POST /run HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(29):
            connection.sendall(chunk)
        assert connection.recv(65536).split(b"\r\n")[0] == b"HTTP/1.1 413 Request Entity Too Large"


def test_a_full_queue_is_told_by_the_head_alone(server: HttpWorker, good: Job, gate: Gate) -> None:
    jobs = [server.ask("/run", {"input": {**good, "prompt": f"gate {gate.port}"}}).json()["id"]]
    gate.reached()
    jobs += [server.ask("/run", {"input": good}).json()["id"] for _ in range(2)]

    answer = raw(server, b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n")
    gate.open()

    assert b" 429 " in answer.splitlines()[0]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "rate_limit_error"
    assert [server.final(job)["status"] for job in jobs] == ["COMPLETED"] * 3


HEADS = {
    "both lengths": b"POST /run HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    "a negative length": b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    "a line folded": b"GET /ping HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a header without end": b"GET /ping HTTP/1.1\r\nx: " + b"a" * 200_000 + b"\r\n\r\n",
    "headers without end": b"GET /ping HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    "a target without end": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_nobody_honest_sends_is_refused_and_the_connection_closed(server: HttpWorker, name: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(HEADS[name])
            answer = connection.recv(65536)
        except ConnectionError:
            answer = b""  # cut off while it still sent
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"431")
    assert server.ask("/ping").status == 200


def test_what_follows_a_refusal_on_its_connection_is_no_request(server: HttpWorker) -> None:
    smuggled = (
        b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 30000001\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    )

    answer = raw(server, smuggled)

    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_form_of_many_parts_is_refused(server: HttpWorker) -> None:
    part = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n1\r\n'

    answer = server.ask(
        "/v1/images/edits", part * 50_000 + b"--b--\r\n", content_type="multipart/form-data; boundary=b"
    )

    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith("the form is wrong: ")


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b"]
)
def test_a_form_that_is_none_is_refused(server: HttpWorker, kind: str) -> None:
    assert server.ask("/edit", b"nonsense", content_type=kind).status == 400
    assert server.worker.errors() == ""


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/run", "/status", "/%2e%2e/ping", "/v2/x"])
def test_other_paths_and_methods_are_told_in_the_routes_own_words(server: HttpWorker, path: str) -> None:
    answer = server.ask(path)

    assert answer.status in (404, 405)
    assert answer.json()["error"]
    assert answer.headers["x-request-id"]


def test_the_callers_name_for_a_request_comes_back(server: HttpWorker) -> None:
    assert server.ask("/health", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    assert server.ask("/health", x_request_id="x y").headers["x-request-id"] != "x y"


def test_metrics_count_jobs_by_their_end(server: HttpWorker, good: Job) -> None:
    server.ask("/runsync", {"input": good})

    text = server.ask("/metrics").body.decode()

    assert 'qwen_edit_jobs_total{door="runsync",outcome="completed"}' in text
    assert 'qwen_edit_stage_seconds_count{stage="denoise"}' in text
    assert "qwen_edit_start_read_bytes" in text
