"""What this worker is, and how it is doing."""

import importlib.metadata
import time
from concurrent.futures import Future
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from qwen_edit.edit.receipt import describe_worker
from qwen_edit.editor import Editor
from qwen_edit.errors import EditError
from qwen_edit.machine.host_memory import resident_bytes
from qwen_edit.serving.http.answers import Document
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.store.folder import available, read_manifest
from qwen_edit.store.manifest import Manifest
from qwen_edit.version import VERSION

PACKAGES = ("torch", "diffusers", "transformers", "nunchaku", "triton", "runpod")
"""Whose versions are told, where they are installed."""


class AboutRoutes:
    """`/health` and `/model-info`."""

    def __init__(self, jobs: Jobs, readiness: Readiness, loading: Future[Editor]) -> None:
        self._jobs = jobs
        self._readiness = readiness
        self._loading = loading
        self._started = time.monotonic()

    async def health(self, request: Request) -> Response:  # noqa: ARG002 - a route's
        """RunPod's counts of jobs and workers, of which there is one here, and beside them what a person asks."""
        counts, waiting, running = self._jobs.counts, self._jobs.number("IN_QUEUE"), self._jobs.number("IN_PROGRESS")
        state = self._readiness.state
        jobs = {
            "completed": counts["COMPLETED"],
            "failed": counts["FAILED"] + counts["TIMED_OUT"],
            "inProgress": running,
            "inQueue": waiting,
            "retried": counts["retried"],
        }
        workers = {
            "idle": int(state == "ready" and not running),
            "initializing": int(state == "loading"),
            "ready": int(state == "ready"),
            "running": int(state == "ready" and running > 0),
            "throttled": 0,
            "unhealthy": int(state == "failed"),
        }
        return Document(
            {
                "jobs": jobs,
                "workers": workers,
                "queue": {"length": waiting, "places": self._jobs.service.settings.places},
                "uptime": round(time.monotonic() - self._started, 1),
                "memory": {"resident_bytes": resident_bytes(), **self._gpu()},
            }
        )

    async def model_info(self, request: Request) -> Response:  # noqa: ARG002 - a route's
        """The choices of this worker, its files, and where it runs."""
        error = self._readiness.error
        document: dict[str, object] = {"state": self._readiness.state, "worker_version": VERSION}
        if error is not None:
            document["error"] = str(error)
        return Document(document | self._choices() | {"versions": versions()})

    def gpu_allocated(self) -> int:
        """Bytes of the GPU's memory that are in use here."""
        return self._gpu().get("gpu_allocated_bytes", 0)

    def _choices(self) -> dict[str, object]:
        models = self._jobs.service.settings.models
        try:
            on_disk, manifest = available(models), read_manifest(models)
        except EditError:
            return {"checkpoints": []}
        checkpoints = [_described(models, checkpoint, manifest) for checkpoint in on_disk]
        editor = self._editor()
        made = editor.pipeline.describe() if editor else None
        told = describe_worker(made, manifest, on_disk) if on_disk else {}
        return told | {"checkpoints": checkpoints}

    def _editor(self) -> Editor | None:
        if not self._loading.done() or self._loading.cancelled() or self._loading.exception() is not None:
            return None
        return self._loading.result()

    def _gpu(self) -> dict[str, int]:
        editor = self._editor()
        return editor.gpu_bytes() if editor else {}


def _described(models: Path, checkpoint: Checkpoint, manifest: Manifest | None) -> dict[str, object]:
    entry = manifest.entry(checkpoint.path) if manifest else None
    return {
        "name": checkpoint.name,
        "file": checkpoint.file,
        "steps": [checkpoint.steps[0], checkpoint.steps[-1]],
        "default_steps": checkpoint.default_steps,
        "rank": checkpoint.rank,
        "bytes": (models / checkpoint.path).stat().st_size,
        "repository": entry.repository if entry else None,
        "revision": entry.revision if entry else None,
        "sha256": entry.sha256 if entry else None,
    }


def versions() -> dict[str, str]:
    """The versions of `PACKAGES`, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
