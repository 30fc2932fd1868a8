"""Telling a caller's own address that a job ended."""

import asyncio
from functools import partial

from qwen_edit import https
from qwen_edit.log import log
from qwen_edit.serving.clock import Clock
from qwen_edit.serving.http.answers import parts_of, pieces_of
from qwen_edit.serving.http.routes.runpod import state_of
from qwen_edit.serving.jobs.job import Job
from qwen_edit.serving.jobs.table import Jobs

TRIES, PAUSE_S, POST_S = 3, 10.0, 30.0
"""As RunPod does it: two more tries, ten seconds apart; and seconds for one try."""


class Webhooks:
    """Calls each job's address with the job's state, as `status` tells it."""

    def __init__(self, jobs: Jobs, clock: Clock | None = None, network: https.Network | None = None) -> None:
        """Begin to hear of the ends of jobs.

        Args:
            network: the public one where left out.
        """
        self._jobs = jobs
        self._clock = clock or Clock()
        self._network = network
        jobs.hear(self._heard)

    def _heard(self, job: Job) -> None:
        if job.webhook is not None:
            body = b"".join(pieces_of(parts_of(state_of(job))))
            self._jobs.owe(asyncio.get_running_loop().create_task(self._call(job.id, job.webhook, body)))

    async def _call(self, job_id: str, url: str, body: bytes) -> None:
        post = partial(https.post, url, body, "application/json", seconds=POST_S, network=self._network)
        for attempt in range(1, TRIES + 1):
            try:
                await asyncio.get_running_loop().run_in_executor(None, post)
            except https.HttpsError as error:  # its words name the host that the caller chose: not for the log
                log("webhook fails", "warning", job=job_id, attempt=attempt, error=type(error).__name__)
            else:
                return
            if attempt < TRIES:
                await self._clock.sleep(PAUSE_S)
