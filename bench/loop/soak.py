"""A burst of good, bad, cancelled and oversize jobs at one worker: each ends once and in the right state."""

import itertools
import re
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

from qwen_edit.serving.queue.outbox import KEPT_BYTES
from tests.support.control_plane import ControlPlane
from tests.support.loop_worker import LoopWorker, running

Kind = Literal["good", "bad", "cancelled", "oversize"]

CYCLE: tuple[Kind, ...] = (
    *("good", "good", "bad", "good", "cancelled", "good", "good"),
    *("good", "bad", "good", "cancelled", "good", "good", "oversize"),
)
LIMIT_MB = 1
SETTLE = 0.3
"""Seconds. The SDK does not hear of a cancel in the tenth of a second between its taking a job and starting it."""

EARLY = 20
"""The jobs of the first burst, after which memory is measured for the first time. The rest are the second."""

GROWTH = 0.05
"""Memory may grow by this share from then to the end, beside the results that the outbox keeps for a while."""

ENDS: dict[Kind, str | None] = {
    "good": r"picture",
    "bad": r"invalid_(request|image): [^\n]+",
    "oversize": r"output_too_large: [^\n]+",
    "cancelled": None,
}
"""How the jobs of a kind end, as a pattern; None where nothing may be posted."""


def soak(models: Path, good: dict[str, Any], device: str, jobs: int) -> None:
    """Queue the jobs at once, wait for their ends, and print what became of them.

    Raises:
        AssertionError: a job did not end once in the right state, or memory grew.
    """
    kinds = dict(zip((f"job-{number}" for number in range(jobs)), itertools.cycle(CYCLE), strict=False))
    with ControlPlane(limit=LIMIT_MB * 1_000_000) as plane, tempfile.TemporaryDirectory() as folder:
        program = ("-m", "bench.loop.program", "async", device)
        with running(plane, models, Path(folder), *program, QWEN_EDIT_MAX_PAYLOAD_MB=str(LIMIT_MB)) as worker:
            memory = _run(plane, worker, kinds, good)
            idle = _idle(worker)
            code = worker.terminate()
    _print(plane, kinds, memory, idle)
    wrong = [job for job, kind in kinds.items() if not _ended_well(plane, job, kind)]
    assert wrong == [], f"these did not end once in the right state: {wrong}"
    assert not any(plane.refused(job) for job in kinds), "a post was refused"
    assert code == 0, f"the worker ended with {code}"
    if jobs > EARLY:
        assert memory[1] <= memory[0] * (1 + GROWTH) + KEPT_BYTES, f"memory grew from {memory[0]} to {memory[1]} bytes"


def _run(plane: ControlPlane, worker: LoopWorker, kinds: dict[str, Kind], good: dict[str, Any]) -> tuple[int, int]:
    """Returns the worker's resident bytes after the first `EARLY` jobs and after the last one."""
    names = list(kinds)
    return _burst(plane, worker, kinds, names[:EARLY], good), _burst(plane, worker, kinds, names[EARLY:], good)


def _burst(
    plane: ControlPlane, worker: LoopWorker, kinds: dict[str, Kind], names: list[str], good: dict[str, Any]
) -> int:
    """Queue jobs at once and wait for all ends. Returns the resident bytes then, with nothing on the device.

    While an edit runs they are up to a gigabyte more, depending on the layer that it is in.
    """
    for job in names:
        plane.submit(job, _payload(kinds[job], good))
    cancelling = threading.Thread(target=_cancel, args=(plane, [job for job in names if kinds[job] == "cancelled"]))
    cancelling.start()
    for job in names:
        if kinds[job] != "cancelled":
            plane.result(job, timeout=600)
    cancelling.join()
    sentinel = f"sentinel-{len(names)}"
    plane.submit(sentinel, good)
    plane.result(sentinel, timeout=600)  # what was cancelled last has left the device
    return _resident(worker)


def _payload(kind: Kind, good: dict[str, Any]) -> dict[str, Any]:
    match kind:
        case "bad":
            return {**good, "rank": 7}
        case "oversize":
            return {**good, "width": 640, "height": 640}
        case "cancelled":
            return {**good, "prompt": "pace 0.5"}
    return good


def _cancel(plane: ControlPlane, doomed: list[str]) -> None:
    """Cancel every other one while it waits for the device, and the rest when they are on it."""
    for number, job in enumerate(doomed):
        plane.taken(job, timeout=3600)
        time.sleep(SETTLE)
        if number % 2:
            plane.update(job, timeout=600)
        plane.cancel(job)


def _ended_well(plane: ControlPlane, job: str, kind: Kind) -> bool:
    pattern, results = ENDS[kind], plane.results(job)
    if pattern is None:
        return results == []
    end = [post.document.get("error") or ("picture" if post.document["output"]["image"] else "") for post in results]
    return len(end) == 1 and re.fullmatch(pattern, end[0]) is not None


def _idle(worker: LoopWorker) -> list[float]:
    spans = sorted((event["started"], event["ended"]) for event in worker.events("rendered"))
    return [start - end for (_, end), (start, _) in itertools.pairwise(spans)]


def _resident(worker: LoopWorker) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def _print(plane: ControlPlane, kinds: dict[str, Kind], memory: tuple[int, int], idle: list[float]) -> None:
    print("| jobs | ended once, in the right state |\n|---|---|")
    for kind in ENDS:
        jobs = [job for job, other in kinds.items() if other == kind]
        print(f"| {kind} | {sum(_ended_well(plane, job, kind) for job in jobs)} of {len(jobs)} |")
    early, late = memory
    print(f"\nResident after job {EARLY}: {early / 1e6:.0f} MB, after the last: {late / 1e6:.0f} MB", end="")
    print(f" ({late / early - 1:+.1%})" if early else "")
    ms = [value * 1000 for value in sorted(idle)]
    print(f"Idle between {len(ms) + 1} edits: median {statistics.median(ms):.1f} ms, longest {ms[-1]:.1f} ms")
