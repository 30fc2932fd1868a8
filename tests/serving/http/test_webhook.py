"""A job's own address, called at the job's end: a real server, whose certificate is checked."""

import asyncio
import json
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_edit.contract.request import EditRequest
from qwen_edit.serving.http.routes.webhook import PAUSE_S, Webhooks
from qwen_edit.serving.jobs.job import Job, Order, Result
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings
from tests.support.https_site import file_answer, network, site
from tests.support.moved_clock import MovedClock
from tests.support.responses import a_response

Answer = Callable[[ssl.SSLSocket, str], None]


def told(models: Path, url: str) -> MovedClock:
    """End a job that names an address, and wait until all is told; the clock knows the pauses."""
    clock = MovedClock()

    async def scene() -> None:
        jobs = Jobs(Service(Settings(models=models)))
        Webhooks(jobs, clock, network())
        job = Job("mine", Order("run", EditRequest(image=b"x", prompt="x"), webhook=url), 0.0)
        job.end("COMPLETED", 1.0, Result(a_response(), {"seed": 7}))
        jobs.tell(job)
        await jobs.close(60)

    asyncio.run(scene())
    return clock


def test_the_address_gets_the_jobs_state_once_where_it_takes_it(models: Path) -> None:
    bodies: list[bytes] = []

    def take(connection: ssl.SSLSocket, head: str) -> None:
        length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        body = b""
        while len(body) < length:
            body += connection.recv(65536)
        bodies.append(body)
        connection.sendall(file_answer(b""))

    with site(take) as server:
        clock = told(models, f"https://pictures.test:{server.port}/done?key=1")

    assert [json.loads(body) for body in bodies] == [
        {"id": "mine", "status": "COMPLETED", "delayTime": 1000, "output": {"seed": 7}}
    ]
    assert server.heads[0].startswith("POST /done?key=1 HTTP/1.1\r\n")
    assert clock.sleeps == []


@pytest.mark.parametrize("status", ["500 Internal Server Error", "404 Not Found", "302 Found"])
def test_an_address_that_does_not_take_it_is_called_three_times(models: Path, status: str) -> None:
    with site(lambda connection, _: connection.sendall(file_answer(b"", status=status))) as server:
        clock = told(models, f"https://pictures.test:{server.port}/")

    assert len(server.heads) == 3
    assert clock.sleeps == [PAUSE_S, PAUSE_S]


@pytest.mark.parametrize("host", ["inside.test", "mixed.test", "unknown.test", "127.0.0.2"])
def test_an_address_that_is_not_public_is_never_connected_to(
    models: Path, host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told(models, f"https://{host}/")

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["webhook fails"] * 3
    assert {event["error"] for event in events} == {"AddressError"}
    assert host not in json.dumps(events)
