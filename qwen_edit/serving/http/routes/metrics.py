"""Metrics in Prometheus' words: jobs by outcome and door, the stages' seconds, the queue, memory, and the start."""

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from qwen_edit.contract.response import Timings
from qwen_edit.machine.host_memory import resident_bytes
from qwen_edit.serving.http.routes.about import AboutRoutes
from qwen_edit.serving.jobs.job import Job
from qwen_edit.serving.jobs.table import Jobs

BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds. Stages take from a millisecond (a decode) to minutes (40 steps on a small card)."""

STAGES = ("queue", "load", "decode", "prompt", "vae_encode", "denoise", "vae_decode", "encode", "total")


class Metrics:
    """What is counted, from the first job on."""

    def __init__(self, jobs: Jobs, about: AboutRoutes) -> None:
        self._jobs = jobs
        self._about = about
        self._registry = CollectorRegistry()
        self._outcomes = Counter("qwen_edit_jobs", "Jobs that ended.", ("door", "outcome"), registry=self._registry)
        self._seconds = Histogram(
            "qwen_edit_stage_seconds",
            "Seconds of an edit's stages.",
            ("stage",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._start = Gauge(
            "qwen_edit_start_seconds", "Seconds of the start's parts.", ("part",), registry=self._registry
        )
        self._read = Gauge("qwen_edit_start_read_bytes", "Bytes that the start read.", registry=self._registry)
        self._gauges()

    def heard(self, job: Job) -> None:
        """A job ended."""
        self._outcomes.labels(job.door, job.status.lower()).inc()
        if job.result is not None:
            self._timed(job.result.response.timings)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002 - a route's
        """All of it."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _timed(self, timings: Timings) -> None:
        for stage in STAGES:
            self._seconds.labels(stage).observe(getattr(timings, stage) / 1000)
        if timings.start is not None:
            for part in ("imports", "read", "assemble", "warm_up", "total"):
                self._start.labels(part).set(getattr(timings.start, part) / 1000)
            self._read.set(timings.start.read_bytes)

    def _gauges(self) -> None:
        """What is looked up when somebody asks."""
        jobs = self._jobs
        for name, text, look in (
            ("qwen_edit_queue_length", "Jobs that wait.", lambda: jobs.number("IN_QUEUE")),
            ("qwen_edit_running", "Jobs that run.", lambda: jobs.number("IN_PROGRESS")),
            ("qwen_edit_resident_bytes", "Memory of the process.", resident_bytes),
            ("qwen_edit_gpu_allocated_bytes", "Memory of the GPU that is in use here.", self._about.gpu_allocated),
        ):
            Gauge(name, text, registry=self._registry).set_function(look)
