"""A worker process in the SDK's real loop, at a control plane on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.control_plane import ControlPlane
from tests.support.patience import PATIENCE
from tests.support.places import ROOT


class LoopWorker:
    """One process. Its output goes to files: a pipe that nobody reads would stop it."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    def output(self) -> str:
        """Its stdout so far."""
        return (self._folder / "stdout").read_text("utf-8")

    def errors(self) -> str:
        """Its stderr so far."""
        return (self._folder / "stderr").read_text("utf-8")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The events that it logged, of one name or all."""
        lines = [json.loads(line) for line in self.output().splitlines() if line.startswith('{"time"')]
        return [line for line in lines if name in (None, line["event"])]

    def wait_for_event(self, name: str, job: str | None = None) -> dict[str, Any]:
        """Wait until it has logged an event of that name, about that job where one is given."""
        deadline = time.monotonic() + PATIENCE
        while not (found := [event for event in self.events(name) if job in (None, event.get("job"))]):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the worker logged no {name!r}: {self.output()} {self.errors()}")
            time.sleep(0.05)
        return found[0]

    def terminate(self) -> int:
        """Send SIGTERM as the platform does, and wait for the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def running(
    plane: ControlPlane, models: Path, folder: Path, *arguments: str, name: str = "worker-1", **environ: str
) -> Iterator[LoopWorker]:
    """Start `python handler.py`, or other arguments, as the platform would; killed at the end if it still runs."""
    with launched(models, folder, *arguments, **(plane.environ(name) | environ)) as worker:
        yield worker


@contextmanager
def launched(models: Path, folder: Path, *arguments: str, **environ: str) -> Iterator[LoopWorker]:
    """As `running`, without a control plane."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = ("QWEN_EDIT_", "RUNPOD_", "BUCKET_", "PORT")
    inherited = {variable: value for variable, value in os.environ.items() if not variable.startswith(ours)}
    settings = {"MODEL_CACHE_DIR": str(models), "QWEN_EDIT_DEVICE": "cpu", **environ}
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *(arguments or ("handler.py",))],
            cwd=ROOT,
            env={**inherited, **settings},
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        yield LoopWorker(process, folder)
    finally:
        # The whole group: the heartbeat outlives a worker that is killed, and would ping for it for ever.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
