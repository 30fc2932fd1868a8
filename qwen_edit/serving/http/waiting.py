"""Waiting for a job as long as its caller does."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.requests import Request

from qwen_edit.serving.http.body import GoneError
from qwen_edit.serving.jobs.job import Job
from qwen_edit.serving.jobs.table import Jobs


@contextmanager
def listening(jobs: Jobs, job: Job) -> Iterator[None]:
    """Wait for a job inside of this; a job that its last caller leaves before its end is stopped."""
    job.listeners += 1
    try:
        yield
    finally:
        jobs.leave(job)


async def until_end(request: Request, job: Job, seconds: float | None = None) -> bool:
    """Wait for a job's end, at most so many seconds. Returns whether it came.

    Args:
        request: its body has been read.

    Raises:
        GoneError: the caller left.
    """
    end, gone = asyncio.ensure_future(job.end_of()), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({end, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not job.is_final:
            raise GoneError
        return job.is_final
    finally:
        end.cancel()
        gone.cancel()


async def until_change(job: Job, seconds: float) -> None:
    """Wait until something happens to a job, at most so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await job.change()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
