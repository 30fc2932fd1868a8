"""RunPod's queue: jobs in, JSON out."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.fitting import limit_for
from qwen_edit.editor import Fetch
from qwen_edit.errors import EditError, SettingsError
from qwen_edit.pictures import read
from qwen_edit.serving import fitness, runpod_sdk
from qwen_edit.serving.service import Caller, DeviceLostError, Service
from qwen_edit.settings import Settings


class Worker:
    """The queue's door of a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.settings = service.settings

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
        """Begin to load the editor, and return at once."""
        self.service.load()

    def run(self) -> None:
        """Serve jobs through RunPod's SDK until it ends. Its import and the load overlap."""
        # At its default, DEBUG, the SDK logs every picture as base64, twice.
        os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
        fitness_checks = [*fitness.checks(self.settings), self.editor_is_ready]
        try:
            runpod_sdk.start(self.handle, self.settings.concurrency, fitness_checks)
        finally:
            self.service.close()

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
        job_id = str(job.get("id", "unknown"))
        try:
            with self.service.job(job_id):
                request = EditRequest.parse(job.get("input"))
                reply = await self.service.edit(request, self._caller(job_id))
                return reply.response.to_json()
        except EditError as error:
            renewal = {"refresh_worker": True} if isinstance(error, DeviceLostError) else {}
            return {"error": str(error), **renewal}

    def _caller(self, job_id: str) -> Caller:
        post = partial(runpod_sdk.post_progress, job_id) if self.settings.on_platform else None
        return Caller(job_id, limit_for(job_id, self.settings), post)
