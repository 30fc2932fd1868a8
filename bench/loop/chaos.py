"""A burst of jobs at one worker while the platform misbehaves: what becomes of each, beside the same burst in peace."""

import collections
import itertools
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.control_plane import ControlPlane, Trouble
from tests.support.loop_worker import LoopWorker, running

SHARE = 0.1
"""Of all questions, those that go wrong."""

TROUBLES: Mapping[str, Sequence[Trouble]] = {
    "job-take": ("reset", "hang", "junk", "wrong", "empty", 500, 429, 401),
    "job-take-batch": ("reset", "hang", "junk", "wrong", "empty", 500, 429, 401),
    "job-stop": ("reset", "hang", "junk", "wrong", "empty", 500, 429, 401),
    "job-done": ("reset", "hang", 500, 503, 429, 408),
    "ping": ("reset", "hang", "junk", 500),
}
"""In which ways. A result that is refused for good is lost by the platform's own word, so that is none of them."""

HANG_S, OUTAGE_S = 2.0, 20.0
STOPPED = ("job-17", "job-59")
TWICE = "job-31"
OUTAGE_AFTER = 0.5
"""Share of the jobs after whose answers nothing goes well for `OUTAGE_S`."""


@dataclass(frozen=True)
class Outcome:
    """Of one run: results of each job, the device's idle seconds, lines and questions in the busiest second."""

    results: Mapping[str, int]
    idle: Sequence[float]
    seconds: float
    lines: int
    asked: int
    code: int


class Weather:
    """Decides what goes wrong. An outage begins when it is told to."""

    def __init__(self) -> None:
        self._draw = random.Random(13)
        self._lock = threading.Lock()
        self._until = 0.0

    def begin_outage(self) -> None:
        self._until = time.monotonic() + OUTAGE_S

    def __call__(self, verb: str) -> Trouble | None:
        with self._lock:
            if time.monotonic() < self._until:
                return "reset"
            return self._draw.choice(TROUBLES[verb]) if self._draw.random() < SHARE else None


def chaos(models: Path, good: dict[str, Any], device: str, jobs: int) -> None:
    """Run the burst in peace and in chaos, and print both.

    Raises:
        AssertionError: a job was not answered exactly once, and none of them was stopped.
    """
    print(
        "| platform | answered once | whole run | idle between edits: median | longest | sum "
        "| most log lines a second | most requests a second | exit |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, weather in (("well", None), ("in chaos", Weather())):
        outcome = _run(models, good, device, jobs, weather)
        once = sum(count == 1 for count in outcome.results.values())
        idle = (
            f"{statistics.median(outcome.idle) * 1000:.1f} ms | {max(outcome.idle):.2f} s | {sum(outcome.idle):.1f} s"
        )
        figures = f"{outcome.lines} | {outcome.asked} | {outcome.code}"
        print(f"| {name} | {once} of {jobs} | {outcome.seconds:.0f} s | {idle} | {figures} |", flush=True)
        wrong = {job: count for job, count in outcome.results.items() if count not in _allowed(job, weather)}
        assert not wrong, f"these were not answered once: {wrong}"
        assert outcome.code == 0, f"the worker ended with {outcome.code}"


def _run(models: Path, good: dict[str, Any], device: str, jobs: int, weather: Weather | None) -> Outcome:
    names = [f"job-{number}" for number in range(jobs)]
    program = ("-m", "bench.loop.program", "async", device)
    with (
        ControlPlane(hang=HANG_S) as plane,
        tempfile.TemporaryDirectory() as folder,
        running(plane, models, Path(folder), *program) as worker,
    ):
        worker.wait_for_event("warm")
        begun = time.monotonic()
        if weather is not None:
            plane.trouble = weather
            threading.Thread(target=_disturb, args=(plane, weather, names, good), daemon=True).start()
        for name in names:
            plane.submit(name, good)
        for name in names:
            if name not in STOPPED or weather is None:
                plane.result(name, timeout=3600)
        seconds = time.monotonic() - begun
        code = worker.terminate()
        return Outcome(
            {name: len(plane.results(name)) for name in names},
            _idle(worker),
            seconds,
            _busiest(_second(event["time"]) for event in worker.events()),
            _busiest(str(int(at)) for _, at in plane.asked),
            code,
        )


def _disturb(plane: ControlPlane, weather: Weather, names: Sequence[str], good: dict[str, Any]) -> None:
    """Two stops, one job that is handed out twice, and an outage."""
    plane.taken(STOPPED[0], timeout=3600)
    plane.cancel(STOPPED[0])
    plane.taken(TWICE, timeout=3600)
    plane.submit(TWICE, good)
    plane.taken(STOPPED[1], timeout=3600)
    plane.cancel(STOPPED[1])
    plane.result(names[round(OUTAGE_AFTER * len(names))], timeout=3600)
    weather.begin_outage()


def _allowed(job: str, weather: Weather | None) -> tuple[int, ...]:
    """How often a job may be answered: one that is handed out twice may be for each time, one that is stopped never."""
    if weather is None:
        return (1,)
    return (1, 2) if job == TWICE else (0, 1) if job in STOPPED else (1,)


def _idle(worker: LoopWorker) -> list[float]:
    spans = sorted((event["started"], event["ended"]) for event in worker.events("rendered"))
    return [start - end for (_, end), (start, _) in itertools.pairwise(spans)]


def _second(moment: str) -> str:
    return moment.partition(".")[0]


def _busiest(seconds: Iterable[str]) -> int:
    return max(collections.Counter(seconds).values())
