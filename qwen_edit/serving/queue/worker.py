"""RunPod's queue: jobs in, JSON out."""

import asyncio
import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from qwen_edit.contract import routes
from qwen_edit.edit.fitting import limit_for
from qwen_edit.editor import Fetch
from qwen_edit.errors import EditError, SettingsError
from qwen_edit.log import flush, write_beside
from qwen_edit.pictures import read
from qwen_edit.serving import fitness
from qwen_edit.serving.ending import FLUSH_S, end_at_signals, leave
from qwen_edit.serving.failures import DeviceLostError, LeftError
from qwen_edit.serving.progress import Progress
from qwen_edit.serving.queue import runpod_sdk
from qwen_edit.serving.queue.loop import Queue
from qwen_edit.serving.queue.runpod_sdk import RunPod
from qwen_edit.serving.service import Caller, Service
from qwen_edit.settings import Settings


class Worker:
    """The queue's door of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings
        self._platform: RunPod | None = None

    @classmethod
    def from_environ(cls, fetch: Fetch | None = None) -> "Worker":
        """The worker of a program: with the environment's settings, or its end with a sentence about one of them.

        Args:
            fetch: see `Editor.load`.
        """
        read.ignore_pillows_warnings()
        try:
            return cls(Service(Settings.from_environ(os.environ), fetch))
        except SettingsError as error:
            sys.exit(f"qwen-edit: {error}")

    def load(self) -> None:
        """Begin to load the editor, and return at once. From now on a signal ends the process, also as process 1."""
        end_at_signals()
        self.service.load()

    def run(self) -> None:
        """Serve jobs through RunPod's SDK until it ends. Its import and the load overlap."""
        # At its default, DEBUG, the SDK logs every picture as base64, twice.
        os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
        if self.settings.on_platform:
            write_beside()
        # The SDK starts its heartbeat in a process when the model is loaded. A fork would copy all memory that is
        # pinned, and give the child a CUDA that it cannot use. The SDK's import makes locks for the method set by then.
        multiprocessing.set_start_method("spawn", force=True)
        # The SDK takes the signals as it starts, and the checks are the first to run after that.
        checks = [end_at_signals, *fitness.checks(self.settings), self.editor_is_ready]
        try:
            status = runpod_sdk.start(self.handle, self.settings.concurrency, checks, self._queue)
        finally:
            has_ended = self.service.close()
            flush(FLUSH_S)
        if self.settings.on_platform or not has_ended:
            leave(status)

    async def editor_is_ready(self) -> None:
        """Wait for the load, and warm the device up: the last check before the platform's first job is taken.

        Raises:
            UnfitError: see `Service.warm_up`.
        """
        try:
            await self.service.warm_up()
        except EditError as error:
            raise fitness.UnfitError(error.sentence) from error

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one job: the response of the contract, or `{"error": "<code>: <sentence>"}`."""
        answer = await self.answer(job)
        return answer or {"error": "internal: the worker lost its device", "refresh_worker": True}

    async def answer(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """As `handle`; None for a job that the platform may hand to another worker."""
        job_id = str(job.get("id", "unknown"))
        try:
            with self.service.job(job_id):
                asked = routes.read(job.get("input"))
                caller = self._caller(job_id, with_preview=asked.request.preview)
                reply = await self.service.edit(asked.request, caller)
                return asked.answer(reply.response)
        except LeftError:
            return None
        except EditError as error:
            renewal = {"refresh_worker": True} if isinstance(error, DeviceLostError) else {}
            return {"error": str(error), **renewal}

    def _caller(self, job_id: str, *, with_preview: bool) -> Caller:
        post = partial(self._platform.report, job_id) if self._platform else None
        return Caller(job_id, limit_for(job_id, self.settings), Progress(post, with_preview))

    def _queue(self, platform: RunPod) -> Queue:
        self._platform = platform
        queue = Queue(platform, self.answer, self.settings.concurrency)
        loop = asyncio.get_running_loop()
        self.service.device.when_lost(lambda: loop.call_soon_threadsafe(queue.abandon))
        return queue
