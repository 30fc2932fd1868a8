"""The worker loop in figures, with RunPod's real SDK at a control plane on loopback.

`python -m bench.loop idle [--real] [--jobs 12]`: the device's idle time, beside a plain sync handler's.
`python -m bench.loop queue [--seconds 2]`: what prefetching costs where several workers share a queue.
`python -m bench.loop soak [--jobs 200] [--fake]`: a burst of good, bad, cancelled and oversize jobs,
after the idle time of both handlers.
`python -m bench.loop chaos [--jobs 200] [--fake]`: a burst while the platform misbehaves, beside one in peace.
"""

import argparse
import base64
import io
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from bench.loop.chaos import chaos
from bench.loop.soak import soak
from builder.made import tiny
from tests.support.control_plane import ControlPlane
from tests.support.loop_worker import LoopWorker, running

PHOTO = Path(__file__).parents[2] / "tests" / "photos" / "chelsea.png"
STEPS = 8
UTILISATION = 0.6
"""Share of the time that the workers are busy where jobs arrive at random."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as name:
        models = Path(name) / "models"
        tiny.write(models, {**tiny.TRANSFORMER, "num_layers": 1, "num_attention_heads": 1})
        match options.what:
            case "idle":
                compare_idle(models, "real" if options.real else "fake", options.jobs or 12, options.seconds)
            case "chaos":
                chaos(models, request(options.seconds), "fake" if options.fake else "real", options.jobs or 200)
            case "queue":
                compare_concurrency(models, options.seconds)
            case "soak":
                device = "fake" if options.fake else "real"
                compare_idle(models, device, 6, options.seconds)
                print()
                soak(models, request(options.seconds), device, options.jobs or 200)


def request(seconds: float = 0.0) -> dict[str, Any]:
    """A good job. On the fake device it takes so many seconds."""
    file = io.BytesIO()
    Image.open(PHOTO).convert("RGB").save(file, "JPEG", quality=90)
    image = base64.b64encode(file.getvalue()).decode("ascii")
    return {"image": image, "prompt": f"pace {seconds / STEPS}", "width": 256, "height": 256, "seed": 1}


def compare_idle(models: Path, device: str, jobs: int, seconds: float) -> None:
    """Print what the device idles between back-to-back jobs, in milliseconds."""
    print("| handler | jobs | an edit, median | idle between jobs: median | p95 | longest |")
    print("|---|---|---|---|---|---|")
    for kind in ("async", "sync"):
        spans = _spans_of_a_burst(models, kind, device, jobs, seconds)
        idle = gaps(spans)
        edit = statistics.median(ended - started for started, ended in spans)
        figures = " | ".join(f"{ms(value)} ms" for value in (statistics.median(idle), _p95(idle), max(idle)))
        print(f"| {kind}, {device} device | {len(spans)} | {edit:.2f} s | {figures} |", flush=True)


def compare_concurrency(models: Path, seconds: float) -> None:
    """Print waits for bursts and for random arrivals, on one to three workers that hold one to three jobs each."""
    print("| workers | concurrency | load | latency: mean | median | longest | last job done after |")
    print("|---|---|---|---|---|---|---|")
    for count, concurrency in itertools.product((1, 2, 3), (1, 2, 3)):
        with workers(models, count, concurrency) as plane:
            for load, arrivals in _loads(count, seconds):
                latencies, makespan = _play(plane, load, arrivals, seconds)
                mean, median, longest = statistics.mean(latencies), statistics.median(latencies), max(latencies)
                figures = f"{mean:.2f} s | {median:.2f} s | {longest:.2f} s | {makespan:.2f} s"
                print(f"| {count} | {concurrency} | {load} | {figures} |", flush=True)


@contextmanager
def workers(models: Path, count: int, concurrency: int) -> Iterator[ControlPlane]:
    """So many workers on the fake device at one queue, warm."""
    with ExitStack() as stack:
        plane = stack.enter_context(ControlPlane())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        program = ("-m", "bench.loop.program", "async", "fake")
        started = [
            stack.enter_context(
                running(
                    plane,
                    models,
                    folder / str(number),
                    *program,
                    name=f"worker-{number}",
                    QWEN_EDIT_CONCURRENCY=str(concurrency),
                )
            )
            for number in range(count)
        ]
        for worker in started:
            worker.wait_for_event("warm")
        time.sleep(2 * plane.hold)  # until each asks for jobs
        yield plane


def gaps(spans: Sequence[tuple[float, float]]) -> list[float]:
    """The seconds from each edit's end to the next one's start."""
    return [start - end for (_, end), (start, _) in itertools.pairwise(sorted(spans))]


def spans_of(worker: LoopWorker) -> list[tuple[float, float]]:
    """When each edit had the device."""
    return [(event["started"], event["ended"]) for event in worker.events("rendered")]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


def _spans_of_a_burst(models: Path, kind: str, device: str, jobs: int, seconds: float) -> list[tuple[float, float]]:
    with ControlPlane() as plane, tempfile.TemporaryDirectory() as folder:
        program = ("-m", "bench.loop.program", kind, device)
        with running(plane, models, Path(folder), *program) as worker:
            names = [plane.submit(str(number), request(seconds)) for number in range(jobs)]
            for name in names:
                assert "output" in plane.result(name, timeout=600)
            return spans_of(worker)


def _loads(count: int, seconds: float) -> Iterator[tuple[str, list[float]]]:
    """What to call a load, and when its jobs arrive, in seconds from its begin."""
    yield "burst of 3", [0.0] * 3
    yield "burst of 9", [0.0] * 9
    draw = random.Random(7)
    between = [draw.expovariate(UTILISATION * count / seconds) for _ in range(10 * count)]
    yield f"random, {UTILISATION:.0%} busy", list(itertools.accumulate(between))


def _play(plane: ControlPlane, load: str, arrivals: Sequence[float], seconds: float) -> tuple[list[float], float]:
    """Submit the jobs on time. Returns each one's seconds from its arrival to its result, and the whole's."""
    began = time.monotonic()
    names = []
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, began + arrival - time.monotonic()))
        names.append(plane.submit(f"{load} {number}".replace(" ", "-").replace("%", ""), request(seconds)))
    ends = []
    for name in names:
        assert "output" in plane.result(name, timeout=600)
        ends.append(plane.results(name)[0].at)
    time.sleep(2)  # until every worker asks for jobs again
    return [end - plane.submitted[name] for name, end in zip(names, ends, strict=True)], max(ends) - began


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[round(0.95 * (len(values) - 1))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("idle", "queue", "soak", "chaos"))
    parser.add_argument("--jobs", type=int, help="12 for idle, 200 for soak and chaos")
    parser.add_argument("--seconds", type=float, default=2.0, help="an edit on the fake device")
    parser.add_argument("--real", action="store_true", help="idle with the tiny model in place of the fake device")
    parser.add_argument(
        "--fake", action="store_true", help="soak and chaos on the fake device in place of the tiny model"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
