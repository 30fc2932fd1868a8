"""How soon the port answers, and what a server beside it costs the editor's start."""

import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from tests.support.control_plane import ControlPlane
from tests.support.http_worker import free_port
from tests.support.loop_worker import LoopWorker, launched, running

POLL_S = 0.01
EVENTS = ("loaded", "warm")


def start(models: Path, rounds: int) -> None:
    """Print medians of the seconds from a process's start, of the server and of the queue's worker in turn."""
    seconds: dict[str, dict[str, list[float]]] = {"http": {}, "queue": {}}
    for number in range(rounds + 1):
        for door, begin in (("http", _http), ("queue", _queue)):
            for name, value in begin(models).items():
                if number:  # the first one only fills the page cache
                    seconds[door].setdefault(name, []).append(value)
    print(f"Demo model, medians (ranges) of {rounds} starts of each in turn.\n")
    print("| seconds from the process's start until | behind HTTP | at the queue |\n|---|---|---|")
    for name in ("the port answers", *EVENTS):
        print(f"| {name} | {_spread(seconds['http'][name])} | {_spread(seconds['queue'].get(name))} |", flush=True)


def _http(models: Path) -> dict[str, float]:
    port, began = free_port(), time.time()
    settings = {"QWEN_EDIT_MODE": "http", "PORT": str(port)}
    with tempfile.TemporaryDirectory() as folder, launched(models, Path(folder), **settings) as worker:
        status = _first_answer(port)
        answered = time.time() - began
        assert status == 204, f"the first answer was {status}: the port came after the load"
        return {"the port answers": answered, **_moments(worker, began)}


def _queue(models: Path) -> dict[str, float]:
    with ControlPlane() as plane, tempfile.TemporaryDirectory() as folder:
        began = time.time()
        with running(plane, models, Path(folder)) as worker:
            return _moments(worker, began)


def _first_answer(port: int) -> int:
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/ping", timeout=60) as reply:
                status: int = reply.status
                return status
        except URLError:
            time.sleep(POLL_S)


def _moments(worker: LoopWorker, began: float) -> dict[str, float]:
    """Seconds until each event, by the worker's own clock: nobody's polling is in them."""
    worker.wait_for_event(EVENTS[-1])
    return {name: datetime.fromisoformat(worker.wait_for_event(name)["time"]).timestamp() - began for name in EVENTS}


def _spread(values: list[float] | None) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else "–"
