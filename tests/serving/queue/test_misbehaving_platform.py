"""The real process at a control plane that answers wrongly, and on a device that is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.control_plane import ControlPlane, Trouble
from tests.support.gates import Gate
from tests.support.loop_worker import LoopWorker, running
from tests.support.patience import PATIENCE

FAKE = ("-m", "tests.support.fake_device")
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)

Job = dict[str, Any]


@pytest.fixture(scope="module")
def good(photo_base64: str) -> Job:
    return {"image": photo_base64, "prompt": "pace 0", "width": 256, "height": 256, "seed": 5}


@pytest.fixture(scope="module")
def loop(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, LoopWorker]]:
    """One worker at one queue, for the tests that it outlives."""
    folder = tmp_path_factory.mktemp("worker")
    with ControlPlane() as plane, running(plane, models, folder, *FAKE) as worker:
        yield plane, worker


@pytest.fixture
def plane(loop: tuple[ControlPlane, LoopWorker]) -> Iterator[ControlPlane]:
    yield loop[0]
    loop[0].trouble = nothing


@pytest.fixture
def worker(loop: tuple[ControlPlane, LoopWorker]) -> LoopWorker:
    return loop[1]


@pytest.fixture
def queue() -> Iterator[ControlPlane]:
    """A queue for a worker that does not outlive its test."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


def nothing(_: str) -> None:
    """No trouble."""


def first(verb: str, *troubles: Trouble) -> Callable[[str], Trouble | None]:
    """Troubles of the next questions of a verb, one each."""
    left = list(troubles)
    return lambda asked: left.pop(0) if asked.startswith(verb) and left else None


def always(verb: str, trouble: Trouble) -> Callable[[str], Trouble | None]:
    return lambda asked: trouble if asked.startswith(verb) else None


def events(worker: LoopWorker, name: str, job: str) -> list[dict[str, Any]]:
    return [event for event in worker.events(name) if event.get("job") == job]


@contextmanager
def lost_worker(queue: ControlPlane, models: Path, folder: Path, **environ: str) -> Iterator[LoopWorker]:
    with running(queue, models, folder, *FAKE, **environ) as worker:
        yield worker


@pytest.mark.parametrize("trouble", ["reset", 503])
def test_a_result_that_is_not_taken_is_posted_again(
    plane: ControlPlane, worker: LoopWorker, good: Job, trouble: Trouble
) -> None:
    plane.trouble = first("job-done", trouble)

    plane.submit(f"posted-again-{trouble}", good)
    plane.result(f"posted-again-{trouble}")

    worker.wait_for_event("delivery fails", f"posted-again-{trouble}")
    assert len(plane.results(f"posted-again-{trouble}")) == 1


def test_a_result_that_is_refused_is_given_up_and_the_next_job_is_run(
    plane: ControlPlane, worker: LoopWorker, good: Job
) -> None:
    plane.trouble = first("job-done", 404)

    plane.submit("refused", good)
    given_up = worker.wait_for_event("not delivered", "refused")
    plane.submit("after-the-refused", good)

    assert (given_up["job"], given_up["attempts"]) == ("refused", 1)
    assert "output" in plane.result("after-the-refused")


def test_results_that_hang_keep_no_job_from_the_device(plane: ControlPlane, good: Job) -> None:
    plane.trouble = first("job-done", "hang", "hang", "hang")

    for number in range(4):
        plane.submit(f"hangs-{number}", good)

    # Three of the posts get no answer for a minute, and two jobs is all that a worker holds.
    for number in range(4):
        plane.taken(f"hangs-{number}")


def test_an_id_that_is_handed_out_twice_is_edited_once(
    plane: ControlPlane, worker: LoopWorker, good: Job, gate: Gate
) -> None:
    plane.submit("twice", {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    plane.submit("twice", good)
    worker.wait_for_event("job came again")
    gate.open()
    plane.result("twice")
    plane.submit("after-twice", good)
    plane.result("after-twice")
    worker.wait_for_event("edited", "after-twice")

    assert len(events(worker, "edited", "twice")) == 1
    assert len(plane.results("twice")) == 1


@pytest.mark.parametrize("trouble", ["junk", "wrong", "reset", 500, "empty"])
def test_after_answers_of_any_kind_to_job_take_the_next_job_is_run(
    plane: ControlPlane, good: Job, trouble: Trouble
) -> None:
    plane.trouble = first("job-take", trouble)
    plane.submit(f"after-{trouble}", good)

    assert "output" in plane.result(f"after-{trouble}")


def test_a_heartbeat_that_is_killed_goes_on(plane: ControlPlane, worker: LoopWorker, good: Job) -> None:
    plane.submit("warm", good)
    plane.result("warm")
    children = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
    (heartbeat,) = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    os.kill(int(heartbeat), signal.SIGKILL)
    worker.wait_for_event("heartbeat again")
    plane.pings.clear()

    plane.pinged()


def test_the_log_names_the_fields_of_a_request_and_not_its_values(
    plane: ControlPlane, worker: LoopWorker, good: Job
) -> None:
    plane.submit("secret", {**good, "rank": 31_337, "width": "quartz"})
    plane.result("secret")

    refused = worker.wait_for_event("refused", "secret")
    assert (refused["code"], sorted(refused["fields"])) == ("invalid_request", ["rank", "width"])
    assert "31337" not in worker.output()
    assert "quartz" not in worker.output()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_device_that_is_lost_costs_at_most_its_own_job_and_ends_the_process(
    queue: ControlPlane, models: Path, tmp_path: Path, good: Job, gate: Gate, concurrency: int
) -> None:
    held = [f"later-{number}" for number in range(concurrency - 1)]
    with lost_worker(queue, models, tmp_path, QWEN_EDIT_CONCURRENCY=str(concurrency)) as worker:
        queue.submit("good", good)
        queue.result("good")
        queue.submit("dies", {**good, "prompt": f"gate {gate.port} die"})
        gate.reached()
        for number in range(6):
            queue.submit(f"later-{number}", good)
        for job in held:
            queue.taken(job)
        gate.open()
        code = worker.process.wait(PATIENCE)

    assert code == 1
    lost = queue.result("dies")
    assert lost.pop("stopPod") is True
    assert lost["error"].startswith("internal: ")
    assert sorted(post.job for post in queue.posts) == ["dies", "good"]
    assert [take.job for take in queue.takes] == ["good", "dies", *held]
    assert [job for event in worker.events("jobs left") for job in event["jobs"]] == held
    assert worker.errors() == ""


def test_a_step_that_never_returns_ends_the_process_after_its_stop(
    queue: ControlPlane, models: Path, tmp_path: Path, good: Job, gate: Gate
) -> None:
    queue.submit("hangs", {**good, "prompt": f"hang {gate.port}"})

    with lost_worker(queue, models, tmp_path) as worker:
        gate.reached()
        queue.submit("waits", good)
        queue.taken("waits")
        queue.cancel("hangs")
        code = worker.process.wait(PATIENCE)

    assert code == 1
    assert "its stop" in worker.events("device lost")[0]["reason"]
    assert [post.job for post in queue.posts] == []


def test_a_signal_ends_the_process_also_while_an_edit_hangs(
    queue: ControlPlane, models: Path, tmp_path: Path, good: Job, gate: Gate
) -> None:
    queue.submit("hangs", {**good, "prompt": f"hang {gate.port}"})

    with lost_worker(queue, models, tmp_path) as worker:
        gate.reached()
        worker.process.send_signal(signal.SIGTERM)
        queue.cancel("hangs")
        code = worker.process.wait(PATIENCE)

    assert code == 0  # nothing is owed any more


def test_a_signal_during_the_load_ends_the_process_at_once_and_says_so_in_its_status(
    queue: ControlPlane, models: Path, tmp_path: Path
) -> None:
    with running(queue, models, tmp_path) as worker:
        while not _catches_sigterm(worker.process.pid):
            time.sleep(0.01)
        code = worker.terminate()

    assert code == 128 + signal.SIGTERM
    assert [event["signal"] for event in worker.events("ended by a signal")] == ["SIGTERM"]
    assert worker.events("warm") == []


def test_a_save_folder_that_hangs_costs_no_reply(queue: ControlPlane, models: Path, tmp_path: Path, good: Job) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    os.mkfifo(folder / "job-5-0.png")  # whoever opens it to write waits for a reader
    queue.submit("job", good)
    queue.submit("job-after", good)

    with lost_worker(queue, models, tmp_path, QWEN_EDIT_SAVE_DIR=str(folder)):
        assert "output" in queue.result("job")
        assert "output" in queue.result("job-after")


def _catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) & SIGTERM_BIT)
