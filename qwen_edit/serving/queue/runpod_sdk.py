"""All that is used of RunPod's SDK (1.12). Its import takes a second and a half, so it stands where it is called.

The SDK's own loop takes and answers jobs in one go: it retries a result for some seconds, and a poll that fails at
once. So `start` puts `Queue` in its place, and the rest of the SDK stays: its arguments, its local runs, its fitness
checks, its heartbeat. Where a name that this needs is gone, the SDK's loop runs, and the log says so.
"""

import asyncio
import json
import multiprocessing
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from qwen_edit.log import log
from qwen_edit.serving.queue.loop import Queue
from qwen_edit.serving.queue.outbox import RefusedError

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]
FitnessCheck = Callable[[], Awaitable[None] | None]
Build = Callable[["RunPod"], Queue]

PROGRESS_S = 5.0
"""Seconds that the post of an update may take."""

QUIET_S = 30.0
"""Seconds without updates after one that failed: they are optional, and each takes the platform's time."""

_RETRIED = (408, 429)
"""Statuses below 500 that may pass."""


def start(handler: Handler, concurrency: int, fitness_checks: Sequence[FitnessCheck], build: Build) -> int:
    """Take jobs until the SDK ends.

    Args:
        handler: answers one job.
        concurrency: jobs held at once, where the SDK's own loop runs.
        fitness_checks: run in this order before the first job is taken, on the platform alone. One that raises ends the
            process with status 1.
        build: makes the queue that takes the place of the SDK's loop.

    Returns:
        The exit status of the process.
    """
    import runpod.serverless

    for check in fitness_checks:
        runpod.serverless.register_fitness_check(check)
    status = SimpleNamespace(value=0)
    try:
        _replace_loop(build, status)
    except (ImportError, AttributeError) as error:
        log("queue of the SDK", "warning", error=f"{type(error).__name__}: {error}")
    runpod.serverless.start({"handler": handler, "concurrency_modifier": lambda current: concurrency})
    return int(status.value)


def _replace_loop(build: Build, status: SimpleNamespace) -> None:
    """Let the SDK start our queue where it would start its loop.

    Raises:
        ImportError, AttributeError: the SDK has changed.
    """
    from runpod.serverless.modules import rp_scale

    parts = _Parts()
    if not hasattr(rp_scale, "JobScaler"):
        raise AttributeError("rp_scale has no JobScaler")

    class Scaler:
        def __init__(self, config: object) -> None:
            """Take the place of the SDK's, whose configuration is what `start` gave it."""

        def start(self) -> None:
            status.value = asyncio.run(_serve(build, parts))

    rp_scale.JobScaler = Scaler


class _Parts:
    """The names of the SDK's modules that the queue's door uses."""

    def __init__(self) -> None:
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules import rp_http, rp_job
        from runpod.serverless.modules.worker_state import JobsProgress
        from runpod.serverless.worker import heartbeat

        self.session = AsyncClientSession
        self.take_url: Callable[[int], str] = rp_job._job_get_url
        self.stop_url: Callable[[], str | None] = rp_job._job_stop_url
        self.done_url: str = rp_http.JOB_DONE_URL
        self.progress = JobsProgress()
        self.heartbeat = heartbeat

    def ping_here(self) -> None:
        """Send heartbeats from a thread of this process, with the jobs in hand, until it ends."""
        self.heartbeat._mirror = self.progress._mirror
        threading.Thread(target=self.heartbeat.ping_loop, name="heartbeat", daemon=True).start()


async def _serve(build: Build, parts: _Parts) -> int:
    async with parts.session() as session:
        platform = RunPod(parts, session)
        queue = build(platform)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, queue.stop)
        for process in multiprocessing.active_children():  # the SDK's heartbeat is the only one
            loop.add_reader(process.sentinel, partial(_heartbeat_ended, parts, process))
        return await queue.run()


def _heartbeat_ended(parts: _Parts, process: BaseProcess) -> None:
    """Go on in its place: a worker that sends none is taken for dead, whatever it has in hand."""
    asyncio.get_running_loop().remove_reader(process.sentinel)
    process.join(1.0)  # it has ended, and its status comes with this
    log("heartbeat again", "warning", status=process.exitcode)
    parts.ping_here()


class RunPod:
    """RunPod's side of a queue, by the addresses that the SDK reads from the environment."""

    def __init__(self, parts: _Parts, session: Any) -> None:  # noqa: ANN401 - aiohttp's, which the SDK brings
        self.is_receiving = False
        self._parts = parts
        self._session = session
        self._quiet_until = 0.0

    async def take(self, number: int) -> list[object]:
        """See `queue.Platform`."""
        try:
            async with self._session.get(self._parts.take_url(number)) as response:
                self.is_receiving = True
                # 400 is how the platform answers a worker that it is about to put to sleep.
                if response.status in (204, 400):
                    return []
                response.raise_for_status()
                jobs = await response.json() if response.content_length != 0 else []
                return jobs if isinstance(jobs, list) else [jobs]
        finally:
            self.is_receiving = False

    async def stops(self) -> list[str]:
        """See `queue.Platform`."""
        url = self._parts.stop_url()
        if url is None:
            return []
        async with self._session.get(url) as response:
            if response.status == 204:
                return []
            response.raise_for_status()
            document = await response.json()
        ids = document.get("jobsToStop", []) if isinstance(document, dict) else []
        return [one for one in ids if isinstance(one, str)] if isinstance(ids, list) else []

    async def send(self, job_id: str, body: bytes) -> None:
        """See `outbox.Send`."""
        async with self._post(job_id, body) as response:
            status = response.status
            await response.read()
        if 400 <= status < 500 and status not in _RETRIED:
            raise RefusedError(f"the platform answered {status}")
        if status >= 300:
            raise ConnectionError(f"the platform answered {status}")

    async def report(self, job_id: str, update: Mapping[str, Any]) -> None:
        """Tell the platform how far a job is, once; after a failure nothing is told for a while."""
        if time.monotonic() < self._quiet_until:
            return
        body = json.dumps({"status": "IN_PROGRESS", "output": dict(update)}, ensure_ascii=False).encode()
        try:
            async with asyncio.timeout(PROGRESS_S), self._post(job_id, body) as response:
                response.raise_for_status()
        except Exception:
            self._quiet_until = time.monotonic() + QUIET_S
            raise

    def holds(self, job_ids: list[str]) -> None:
        """See `queue.Platform`: the SDK's heartbeat tells them."""
        for gone in {str(job) for job in self._parts.progress} - set(job_ids):
            self._parts.progress.remove(gone)
        for job_id in job_ids:
            self._parts.progress.add(job_id)

    def _post(self, job_id: str, body: bytes) -> Any:  # noqa: ANN401 - as above
        return self._session.post(
            self._parts.done_url.replace("$ID", quote(job_id, safe="")) + "&isStream=false",
            data=body,
            headers={
                "charset": "utf-8",
                "Content-Type": "application/x-www-form-urlencoded",
                "X-Request-ID": job_id,
            },
        )
