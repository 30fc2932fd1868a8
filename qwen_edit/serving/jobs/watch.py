"""The steps of a job that a door keeps, told to it as they come."""

import asyncio
import time
from collections.abc import Callable
from typing import Self

from qwen_edit.edit.hooks import Step
from qwen_edit.serving.jobs.job import Job
from qwen_edit.serving.progress import INTERVAL, update_of


class Watch:
    """A listener (see `serving.progress`) that tells a job of each step.

    A preview costs a wait for the device. So `with_preview` chooses its steps. Where it is None, `often` asks for one
    every half a second at most.
    """

    def __init__(self, job: Job, with_preview: Callable[[Step], bool] | None, *, often: bool) -> None:
        self._job = job
        self._with_preview = with_preview
        self._often = often
        self._due = time.monotonic() + INTERVAL
        self._loop = asyncio.get_running_loop()

    def on_step(self, step: Step) -> None:
        """See `Listener`."""
        self._loop.call_soon_threadsafe(self._job.hear, update_of(step, with_preview=self._wants(step)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0)  # what was handed over before this moment has been heard now

    def _wants(self, step: Step) -> bool:
        if step.number == step.steps:
            return False
        if self._with_preview is not None:
            return self._with_preview(step)
        if not self._often or time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + INTERVAL
        return True
