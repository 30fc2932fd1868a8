"""Results on their way to the platform: posted again until they are taken, while the device goes on."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from qwen_edit.log import log
from qwen_edit.serving.clock import Clock, Pauses

ATTEMPT_S = 60.0
"""Seconds that one post may take."""

PATIENCE_S = 15 * 60.0
"""Seconds for which a result is posted again. The platform's outages of some minutes cost no result."""

KEPT_S = 5 * 60.0
KEPT_BYTES = 64_000_000
"""How long, and how much of, what was delivered is kept: a job that is handed out again gets its result again."""

MOST_BYTES = 512_000_000
"""What may wait for delivery before no further job is taken."""

Send = Callable[[str, bytes], Awaitable[None]]
"""Posts one result. An error means that it was not taken, `RefusedError` that it never will be."""


class RefusedError(Exception):
    """The platform will not take this result, however often it is posted."""


@dataclass
class _Result:
    body: bytes = field(repr=False)
    is_owed: bool = True
    task: "asyncio.Task[None] | None" = None
    delivered_at: float | None = None


class Outbox:
    """Delivers results, each in a task of its own."""

    def __init__(self, send: Send, clock: Clock, settled: Callable[[], None] = lambda: None) -> None:
        """Make an empty one.

        Args:
            settled: called whenever a result was delivered or given up.
        """
        self._send = send
        self._clock = clock
        self._settled = settled
        self._results: dict[str, _Result] = {}
        self._has_lost = False

    def post(self, job_id: str, body: bytes) -> None:
        """Begin to deliver a result."""
        self._post(job_id, _Result(body))

    def _post(self, job_id: str, result: _Result) -> None:
        result.task = asyncio.get_running_loop().create_task(self._deliver(job_id, result))
        result.task.add_done_callback(lambda _: self._settled())
        self._results[job_id] = result

    def post_again(self, job_id: str) -> bool:
        """Deliver once more what a job ended with a short while ago. Returns whether it is known."""
        self._forget()
        result = self._results.get(job_id)
        if result is None:
            return False
        if result.delivered_at is not None:
            self._post(job_id, _Result(result.body, is_owed=False))
        return True

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more should come."""
        return sum(len(result.body) for result in self._results.values() if result.delivered_at is None) > MOST_BYTES

    async def finish(self) -> bool:
        """Wait until each result was delivered or given up. Returns whether all were delivered, from the first on."""
        await asyncio.gather(*(result.task for result in self._results.values() if result.task is not None))
        return not self._has_lost

    async def _deliver(self, job_id: str, result: _Result) -> None:
        begun, pauses = self._clock.now(), Pauses()
        while True:
            error = await self._attempt(job_id, result.body)
            if error is None:
                result.delivered_at = self._clock.now()
                log("delivered", job=job_id, attempts=pauses.failures + 1)
                return
            pause = pauses.next()
            waited = self._clock.now() - begun
            if isinstance(error, RefusedError) or waited + pause > PATIENCE_S:
                log("not delivered", "error", job=job_id, attempts=pauses.failures, error=_told(error))
                self._has_lost |= result.is_owed
                del self._results[job_id]
                return
            if pauses.failures == 1:
                log("delivery fails", "warning", job=job_id, error=_told(error))
            await self._clock.sleep(pause)

    async def _attempt(self, job_id: str, body: bytes) -> Exception | None:
        try:
            async with asyncio.timeout(ATTEMPT_S):
                await self._send(job_id, body)
        except Exception as error:  # whatever the client's library raises, the result is still owed
            return error
        return None

    def _forget(self) -> None:
        """Let go of results that were delivered long ago, and of the oldest where they are many bytes."""
        done = [(at, job) for job, one in self._results.items() if (at := one.delivered_at) is not None]
        size = sum(len(self._results[job].body) for _, job in done)
        for at, job in sorted(done):
            if self._clock.now() - at <= KEPT_S and size <= KEPT_BYTES:
                return
            size -= len(self._results.pop(job).body)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
