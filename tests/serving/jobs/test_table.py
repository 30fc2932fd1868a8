import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from qwen_edit.serving.http.body import GoneError
from qwen_edit.serving.http.routes.runpod import RunPodRoutes
from qwen_edit.serving.jobs import table
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings


def asked(path: str, fields: dict[str, Any], key: bytes) -> Request:
    """A request whose caller leaves as soon as the body is there."""
    body = json.dumps({"input": fields}).encode()
    messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    headers = [(b"idempotency-key", key)]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    return Request(scope, receive)


@pytest.mark.parametrize(("is_asked_for_later", "ends"), [(True, "IN_QUEUE IN_PROGRESS"), (False, "CANCELLED")])
def test_a_caller_who_leaves_stops_a_job_that_nobody_else_may_ask_for(
    models: Path, photo_base64: str, monkeypatch: pytest.MonkeyPatch, is_asked_for_later: bool, ends: str
) -> None:
    monkeypatch.setattr(table, "GRACE_S", 0.0)
    fields = {"image": photo_base64, "prompt": "x", "width": 256, "height": 256}

    async def scene() -> str:
        service = Service(Settings(models=models, device="cpu"))
        jobs = Jobs(service)
        routes = RunPodRoutes(jobs)
        if is_asked_for_later:
            await routes.run(asked("/run", fields, b"mine"))
        with pytest.raises(GoneError):
            await routes.runsync(asked("/runsync", fields, b"mine"))
        job = jobs.find_by_key("/run mine")
        assert job is not None
        await asyncio.sleep(0.05)  # the end of the grace, and of the task that it stops
        status = job.status
        await jobs.close(0)
        service.close()
        return status

    assert asyncio.run(scene()) in ends.split()


def test_an_end_does_not_wait_longer_than_it_may_for_what_is_owed(models: Path) -> None:
    async def scene() -> None:
        jobs = Jobs(Service(Settings(models=models)))
        never = asyncio.get_running_loop().create_task(asyncio.Event().wait())
        jobs.owe(never)  # type: ignore[arg-type]

        await jobs.close(0.05)

        assert never.cancelled()

    asyncio.run(scene())
