"""Admission, order and end of the jobs of a door that keeps them."""

import asyncio
import math
import secrets
import statistics
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial

from qwen_edit.errors import Cancelled, EditError
from qwen_edit.serving.clock import Clock
from qwen_edit.serving.failures import OverloadedError
from qwen_edit.serving.jobs.job import Job, Order, Result
from qwen_edit.serving.jobs.kept import Kept
from qwen_edit.serving.jobs.watch import Watch
from qwen_edit.serving.service import Caller, Service

RECENT = 20
"""Edits by whose seconds the next ones are judged."""

FIRST_GUESS_S = 5.0
"""Seconds an edit, before there was one."""

GRACE_S = 15.0
"""Seconds that a job with a caller's own key goes on after its caller was lost: clients repeat within 8 s."""

LONGEST_RETRY_S = 120
"""What OpenAI's client still waits for; it does not repeat after a longer `Retry-After`."""

Ended = Callable[[Job], None]


class Jobs:
    """The jobs of a service's doors over HTTP. All of it is for the event loop's thread."""

    def __init__(self, service: Service, clock: Clock | None = None) -> None:
        """Make an empty table.

        Args:
            service: with as many places as jobs may wait and run together.
        """
        self.service = service
        self.counts: Counter[str] = Counter()
        self._clock = clock or Clock()
        self._hearers: list[Ended] = []
        self._owed: set[asyncio.Task[None]] = set()
        self._kept = Kept()
        self._slots = asyncio.Semaphore(service.settings.concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self.is_closed = False

    def hear(self, ended: Ended) -> None:
        """Call a function with each job that ends."""
        self._hearers.append(ended)

    def tell(self, job: Job) -> None:
        """Call the functions of `hear`."""
        for hear in self._hearers:
            hear(job)

    def owe(self, task: asyncio.Task[None]) -> None:
        """Have a task that an end waits for."""
        self._owed.add(task)
        task.add_done_callback(self._owed.discard)

    def submit(self, order: Order, prefix: str = "") -> Job:
        """Take a job.

        Raises:
            OverloadedError: every place is taken, or no more is taken at all.
        """
        if self.is_closed or self.service.is_full:
            raise OverloadedError
        job = Job(f"{prefix}{secrets.token_hex(16)}", order, self._clock.now())
        self._kept.put(job)
        self._start(job, order)
        return job

    def refuse(self, error: EditError, prefix: str = "") -> Job:
        """A job that failed before it took a place, as the platform answers for a wrong input."""
        job = Job(f"{prefix}{secrets.token_hex(16)}", None, self._clock.now())
        self._kept.put(job)
        job.end("FAILED", self._clock.now(), error=error)
        self._settle(job)
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of an id, unless its time is over."""
        return self._kept.find(job_id, self._clock.now())

    def find_by_key(self, key: str | None) -> Job | None:
        """The job of a caller's own key, unless it ended and has no result."""
        job = self._kept.find_by_key(key, self._clock.now()) if key else None
        return None if job is None or (job.is_final and job.result is None) else job

    def cancel(self, job: Job) -> None:
        """Stop a job; on the device it stops at the next step."""
        if (task := self._tasks.get(job.id)) is not None:
            task.cancel()

    def retry(self, job: Job) -> bool:
        """Run a job that failed or took too long once more. Returns whether there is something to run.

        Raises:
            OverloadedError: as for `submit`.
        """
        if job.status not in ("FAILED", "TIMED_OUT") or job.order is None:
            return False
        if self.is_closed or self.service.is_full:
            raise OverloadedError
        job.again(self._clock.now())
        self.counts["retried"] += 1
        self._start(job, job.order)
        return True

    def purge(self) -> int:
        """Stop all that has not begun. Returns how many jobs that were."""
        waiting = [job for job in self._kept.unfinished() if job.status == "IN_QUEUE"]
        for job in waiting:
            self.cancel(job)
        return len(waiting)

    def leave(self, job: Job) -> None:
        """A caller who waited is gone. A job that nobody waits for stops, one with a key a while later."""
        job.listeners -= 1
        if job.is_final or job.listeners > 0:
            return
        if job.key is None:
            self.cancel(job)
        else:
            asyncio.get_running_loop().call_later(GRACE_S, self._cancel_if_left, job)

    def number(self, status: str) -> int:
        """Of the jobs that have not ended, those of a status."""
        return sum(job.status == status for job in self._kept.unfinished())

    def retry_after(self) -> int:
        """Seconds after which a place is probably free."""
        seconds = statistics.median(self._seconds) if self._seconds else FIRST_GUESS_S
        return min(LONGEST_RETRY_S, max(1, math.ceil(seconds)))

    async def close(self, seconds: float) -> None:
        """Take nothing more; let what is here end within so many seconds, then stop the rest."""
        self.is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while unfinished := {*self._tasks.values(), *self._owed}:
                    await asyncio.wait(unfinished)
        stopped = {*self._tasks.values(), *self._owed}
        for task in stopped:
            task.cancel()
        if stopped:
            await asyncio.wait(stopped)

    def _start(self, job: Job, order: Order) -> None:
        place = ExitStack()
        place.enter_context(self.service.job(job.id))
        task = asyncio.get_running_loop().create_task(self._run(job, order, place))
        self._tasks[job.id] = task
        task.add_done_callback(partial(self._done, job, place))

    async def _run(self, job: Job, order: Order, place: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(order.policy.ttl_s) as life:
                with place:
                    async with self._slots:
                        job.begin(self._clock.now())
                        life.reschedule(min(life.when() or math.inf, loop.time() + order.policy.execution_s))
                        result = await self._edit(job, order)
        except TimeoutError:
            job.end("TIMED_OUT", self._clock.now(), error=Cancelled(_out_of_time(job, order)))
        except EditError as error:
            job.end("FAILED", self._clock.now(), error=error)
        else:
            now = self._clock.now()
            self._seconds.append(now - (job.started or now))
            job.end("COMPLETED", now, result)

    async def _edit(self, job: Job, order: Order) -> Result:
        watch = Watch(job, order.with_preview, often=order.request.preview)
        caller = Caller(job.id, order.limit, watch, waited_ms=job.delay_ms or 0)
        reply = await self.service.edit(order.request, caller)
        files = reply.encoded.files if order.keeps_files else ()
        return Result(reply.response, order.answer(reply.response), files)

    def _done(self, job: Job, place: ExitStack, task: asyncio.Task[None]) -> None:
        """However it ended, also before it began."""
        place.close()
        del self._tasks[job.id]
        if not job.is_final:
            job.end("CANCELLED", self._clock.now(), error=Cancelled("the job was cancelled"))
        if not task.cancelled():
            task.exception()
        self._settle(job)

    def _settle(self, job: Job) -> None:
        self.counts[job.status] += 1
        self._kept.forget(self._clock.now())
        asyncio.get_running_loop().call_later(job.kept_s + 1, self._forget)
        self.tell(job)

    def _forget(self) -> None:
        """Let go of what nobody may ask for any more, and give its memory back: the allocator would keep it."""
        self._kept.forget(self._clock.now())
        if not self._tasks:
            self.service.device.rest()

    def _cancel_if_left(self, job: Job) -> None:
        if job.listeners <= 0:
            self.cancel(job)


def _out_of_time(job: Job, order: Order) -> str:
    if job.started is None:
        return f"the job waited longer than its policy.ttl of {order.policy.ttl_s * 1000:,.0f} ms allows"
    return f"the job ran longer than its policy.executionTimeout of {order.policy.execution_s * 1000:,.0f} ms allows"
