"""A platform's queue: jobs taken, run, stopped and answered, whatever the platform does.

A job holds a slot until it has left the device. Its result is delivered beside the next job.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from qwen_edit.log import log
from qwen_edit.serving.clock import Clock, Pauses
from qwen_edit.serving.queue.outbox import Outbox

POLL_S = 90.0
"""Seconds that the platform may hold a poll open."""

EMPTY_S = 1.0
"""Least seconds between two polls that bring nothing: the platform holds them open, or it does not."""

ANSWER_S = 10.0
"""Seconds that an end waits for an answer that has begun to arrive."""

Job = Mapping[str, Any]
Handle = Callable[[Job], Awaitable[dict[str, Any] | None]]


class Platform(Protocol):
    """The other side of the queue. Every call may raise anything.

    `is_receiving` says that an answer to `take` is on its way: jobs may be in it.
    """

    is_receiving: bool

    async def take(self, number: int) -> list[object]:
        """Wait for at most so many jobs; none is an empty list."""

    async def stops(self) -> list[str]:
        """Wait for the ids of jobs to stop."""

    async def send(self, job_id: str, body: bytes) -> None:
        """Post a result; see `outbox.Send`."""

    def holds(self, job_ids: list[str]) -> None:
        """Hear of the jobs in hand, for the heartbeat."""


class Queue:
    """Runs jobs until it is stopped, or until the device is lost."""

    def __init__(self, platform: Platform, handle: Handle, concurrency: int, clock: Clock | None = None) -> None:
        """Make a queue that has not begun to poll.

        Args:
            handle: answers one job: `{"error": sentence}`, perhaps with `refresh_worker`, or a result, or None where
                the job is left to the platform.
            concurrency: jobs that have not left the device.
        """
        self._platform = platform
        self._handle = handle
        self._concurrency = concurrency
        self._clock = clock or Clock()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended = asyncio.Event()
        self._changed = asyncio.Event()
        self._outbox = Outbox(platform.send, self._clock, self._changed.set)
        self._left: list[str] = []
        self._status = 0

    def stop(self) -> None:
        """Take nothing more; what is in hand is run and delivered. On the event loop."""
        self._ended.set()

    def abandon(self) -> None:
        """Take nothing more: the device is lost. What needs it is left to the platform. On the event loop."""
        self._status = 1
        self._ended.set()

    async def run(self) -> int:
        """Serve until `stop` or `abandon`, and until every result was delivered or given up.

        Returns:
            The exit status of the process: 0, or 1 where the device was lost or a result was not delivered.
        """
        taking, stopping = (asyncio.ensure_future(loop()) for loop in (self._take_jobs, self._stop_jobs))
        await self._ended.wait()
        await self._received()
        taking.cancel()
        await asyncio.wait({taking})
        while self._running:  # which can still be stopped
            await asyncio.wait(list(self._running.values()))
        stopping.cancel()
        await asyncio.wait({stopping})
        if self._left:
            log("jobs left", "error", jobs=sorted(self._left))
        delivered = await self._outbox.finish()
        return self._status if delivered else 1

    async def _received(self) -> None:
        """Wait for an answer that has begun: the jobs in it are nobody else's."""
        waited = 0.0
        while self._platform.is_receiving and waited < ANSWER_S:
            await self._clock.sleep(0.05)
            waited += 0.05
        if self._platform.is_receiving:  # what it brings is lost here, and the platform hears of it by the status
            log("jobs not received", "error")
            self._status = 1

    async def _take_jobs(self) -> None:
        await self._poll("jobs", self._take)

    async def _stop_jobs(self) -> None:
        await self._poll("stops", self._stop)

    async def _poll(self, what: str, once: Callable[[], Awaitable[bool]]) -> None:
        """Poll for ever: at once after news, seldom after none, ever more seldom after failures."""
        pauses = Pauses()
        while True:
            begun = self._clock.now()
            try:
                async with asyncio.timeout(POLL_S):
                    news = await once()
            except TimeoutError:
                news = False
            except Exception as error:  # whatever the platform or its client does, the next poll may go well
                if not pauses.failures:
                    log("polls fail", "warning", what=what, error=f"{type(error).__name__}: {error}"[:200])
                await self._clock.sleep(pauses.next())
                continue
            if pauses.reset():
                log("polls go well", what=what)
            if not news:
                await self._clock.sleep(max(0.0, EMPTY_S - (self._clock.now() - begun)))

    async def _take(self) -> bool:
        """Wait for a free slot, then for a job. Returns whether one came."""
        while (free := self._concurrency - len(self._running)) <= 0 or self._outbox.is_full:
            self._changed.clear()
            await self._changed.wait()
        taken = [job for job in await self._platform.take(free) if self._begin(job)]
        return bool(taken)

    async def _stop(self) -> bool:
        stopped = [job_id for job_id in await self._platform.stops() if job_id in self._running]
        for job_id in stopped:
            log("stopped", job=job_id)
            self._running[job_id].cancel()
        return bool(stopped)

    def _begin(self, job: object) -> bool:
        """Run a job, unless it is none, or in hand, or done a short while ago."""
        if not (isinstance(job, dict) and isinstance(job.get("id"), str) and job["id"]):
            log("not a job", "warning", kind=type(job).__name__)
            return False
        job_id = job["id"]
        if job_id in self._running or self._outbox.post_again(job_id):
            log("job came again", "warning", job=job_id)
            return False  # no news: a platform that repeats itself is asked once a second
        task = asyncio.get_running_loop().create_task(self._run(job_id, job))
        self._running[job_id] = task
        task.add_done_callback(lambda _: self._done(job_id))
        self._tell()
        return True

    async def _run(self, job_id: str, job: Job) -> None:
        result = await self._handle(job)
        if result is None:
            self._left.append(job_id)
            self.abandon()
            return
        self._outbox.post(job_id, _body(result))
        if result.get("refresh_worker"):
            self.abandon()

    def _done(self, job_id: str) -> None:
        """However it ended, also before it began."""
        del self._running[job_id]
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._platform.holds(list(self._running))


def _body(result: dict[str, Any]) -> bytes:
    """As RunPod's SDK writes what a handler returns."""
    if "error" not in result:
        return json.dumps({"output": result}, ensure_ascii=False).encode()
    document = {"error": result["error"]} | ({"stopPod": True} if result.get("refresh_worker") else {})
    return json.dumps(document, ensure_ascii=False).encode()
