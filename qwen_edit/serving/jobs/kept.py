"""The jobs that a door knows, and what is kept of those that ended."""

from qwen_edit.serving.jobs.job import Job

KEPT_BYTES = 512_000_000
"""What the results of ended jobs may take together; the oldest goes first."""

KEPT_JOBS = 10_000
"""Ended jobs whose status is kept."""


class Kept:
    """Jobs by their id, and by the caller's own key."""

    def __init__(self, most_bytes: int = KEPT_BYTES, most_jobs: int = KEPT_JOBS) -> None:
        self._most_bytes = most_bytes
        self._most_jobs = most_jobs
        self._jobs: dict[str, Job] = {}
        self._keys: dict[str, str] = {}

    def put(self, job: Job) -> None:
        """Know a job from now on."""
        self._jobs[job.id] = job
        if job.key is not None:
            self._keys[job.key] = job.id

    def find(self, job_id: str, now: float) -> Job | None:
        """The job of an id; None where there was none, or its time is over."""
        job = self._jobs.get(job_id)
        if job is not None and _is_over(job, now):
            self._drop(job)
            return None
        return job

    def find_by_key(self, key: str, now: float) -> Job | None:
        """The job of a caller's own key."""
        return self.find(self._keys.get(key, ""), now)

    def unfinished(self) -> list[Job]:
        """In the order in which they came."""
        return [job for job in self._jobs.values() if not job.is_final]

    def forget(self, now: float) -> None:
        """Let go of jobs whose time is over, and of the oldest results where they are too many bytes."""
        ended = sorted((job for job in self._jobs.values() if job.is_final), key=lambda job: job.ended or 0.0)
        surplus = len(ended) - self._most_jobs
        for number, job in enumerate(ended):
            if number < surplus or _is_over(job, now):
                self._drop(job)
        kept = [job for job in ended if job.result is not None and job.id in self._jobs]
        size = sum(map(_size, kept))
        for job in kept[:-1]:  # the last one is about to be fetched, however large
            if size <= self._most_bytes:
                return
            size -= _size(job)
            job.let_go()

    def _drop(self, job: Job) -> None:
        del self._jobs[job.id]
        if job.key is not None and self._keys.get(job.key) == job.id:  # a later job may have it
            del self._keys[job.key]


def _is_over(job: Job, now: float) -> bool:
    return job.ended is not None and now - job.ended > job.kept_s


def _size(job: Job) -> int:
    return job.result.size if job.result else 0
