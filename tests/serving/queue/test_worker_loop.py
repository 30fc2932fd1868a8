"""The SDK's real loop, at a control plane on loopback, on a device that waits and fails as the tests decide."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.control_plane import API_KEY, ControlPlane
from tests.support.gates import Gate
from tests.support.loop_worker import LoopWorker, running
from tests.support.patience import PATIENCE

Job = dict[str, Any]
Ends = dict[str, dict[str, Any]]

FAKE = ("-m", "tests.support.fake_device")
ARGUMENTS = ("--rp_api_port", "9000", "--of-somebody-else")
SECRET = "sphinx of black quartz"
LIMIT_MB = 1
GOOD = ("first", "second", "third")
BAD: dict[str, Job] = {
    "odd-rank": {"rank": 7},
    "no-picture": {"image": "aGk="},
    "no-prompt": {"prompt": " "},
    "typo": {"promt": "x"},
}


@pytest.fixture(scope="module")
def good(photo_base64: str) -> Job:
    return {"image": photo_base64, "prompt": SECRET, "width": 256, "height": 256, "seed": 5}


@pytest.fixture(scope="module")
def loop(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, LoopWorker]]:
    """One worker at one queue, for the whole module."""
    folder = tmp_path_factory.mktemp("worker")
    with (
        ControlPlane(limit=LIMIT_MB * 1_000_000) as plane,
        running(plane, models, folder, *FAKE, *ARGUMENTS, QWEN_EDIT_MAX_PAYLOAD_MB=str(LIMIT_MB)) as worker,
    ):
        yield plane, worker


@pytest.fixture(scope="module")
def plane(loop: tuple[ControlPlane, LoopWorker]) -> ControlPlane:
    return loop[0]


@pytest.fixture(scope="module")
def worker(loop: tuple[ControlPlane, LoopWorker]) -> LoopWorker:
    return loop[1]


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Where a job of the test waits on the device."""
    with Gate() as gate:
        yield gate


@pytest.fixture
def next_gate() -> Iterator[Gate]:
    """Where the job behind it waits."""
    with Gate() as gate:
        yield gate


@pytest.fixture
def decoded() -> Iterator[Gate]:
    """Where a job of the test says that it is decoded."""
    with Gate() as gate:
        yield gate


@pytest.fixture(scope="module")
def burst(plane: ControlPlane, good: Job) -> Ends:
    """Good and bad jobs, queued at once: the ends that were posted."""
    for job in GOOD:
        plane.submit(job, good)
    for job, wrong in BAD.items():
        plane.submit(job, {**good, **wrong})
    plane.submit("nothing", None)
    return {job: plane.result(job) for job in (*GOOD, *BAD, "nothing")}


def test_every_job_of_a_burst_ends_exactly_once(plane: ControlPlane, burst: Ends) -> None:
    assert {job: len(plane.results(job)) for job in burst} == dict.fromkeys(burst, 1)
    assert sorted(take.job for take in plane.takes if take.job in burst) == sorted(burst)
    assert plane.keys == {API_KEY}


@pytest.mark.parametrize("job", GOOD)
def test_a_good_job_is_answered_with_its_picture(burst: Ends, job: str) -> None:
    assert burst[job].keys() == {"output"}
    output = burst[job]["output"]
    with Image.open(io.BytesIO(base64.b64decode(output["image"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (256, 256))
    assert output["seed"] == 5


@pytest.mark.parametrize("job", [*BAD, "nothing"])
def test_a_bad_job_fails_with_a_sentence_and_nothing_else(burst: Ends, job: str) -> None:
    assert burst[job].keys() == {"error"}
    assert re.fullmatch(r"invalid_(request|image): [^\n]+", burst[job]["error"])


@pytest.mark.usefixtures("burst")
def test_the_workers_warm_up_comes_before_its_first_job(worker: LoopWorker) -> None:
    names = [event["event"] for event in worker.events()]

    assert names.index("loaded") < names.index("warm") < names.index("delivered")


def test_the_next_job_is_taken_and_decoded_while_one_is_on_the_device(
    plane: ControlPlane, good: Job, gate: Gate, decoded: Gate
) -> None:
    plane.submit("long", {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    plane.submit("next", {**good, "prompt": f"decoded {decoded.port}"})

    decoded.reached()

    assert plane.results("long") == []
    gate.open()
    assert "output" in plane.result("long")
    assert plane.result("next")["output"]["timings"]["queue"] > 0


def test_a_picture_is_encoded_and_posted_while_the_next_job_is_on_the_device(
    plane: ControlPlane, good: Job, gate: Gate, next_gate: Gate, decoded: Gate
) -> None:
    plane.submit("rendered", {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    plane.submit("on-the-device", {**good, "prompt": f"gate {next_gate.port} decoded {decoded.port}"})
    decoded.reached()

    gate.open()
    next_gate.reached()

    assert "output" in plane.result("rendered")
    assert plane.results("on-the-device") == []
    next_gate.open()
    assert "output" in plane.result("on-the-device")


def test_a_cancelled_job_leaves_the_device_and_nothing_is_posted_for_it(
    plane: ControlPlane, good: Job, gate: Gate
) -> None:
    plane.submit("cancelled", {**good, "prompt": f"gate {gate.port}"})
    plane.update("cancelled")
    plane.submit("after", good)

    plane.cancel("cancelled")

    assert "output" in plane.result("after")  # behind one that would never have ended
    assert plane.results("cancelled") == []
    told = [post.job for post in plane.posts]
    assert "cancelled" not in told[told.index("after") :]


def test_a_job_that_is_cancelled_while_it_waits_is_never_rendered(
    plane: ControlPlane, worker: LoopWorker, good: Job, gate: Gate, decoded: Gate
) -> None:
    plane.submit("running", {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    plane.submit("waiting", {**good, "prompt": f"decoded {decoded.port}"})
    decoded.reached()

    plane.cancel("waiting")
    plane.submit("third-in-line", good)
    plane.taken("third-in-line")  # in the place of the one that was cancelled
    gate.open()

    assert "output" in plane.result("running")
    assert "output" in plane.result("third-in-line")
    assert [post for post in plane.posts if post.job == "waiting"] == []
    assert "waiting" not in {event["job"] for event in worker.events("edited")}


def test_the_heartbeat_names_the_job_that_is_on_the_device(plane: ControlPlane, good: Job, gate: Gate) -> None:
    plane.submit("beating", {**good, "prompt": f"gate {gate.port}"})

    plane.pinged("beating")

    gate.open()
    plane.result("beating")


def test_updates_say_how_far_a_job_is_come_at_most_twice_a_second_and_stop_before_its_last_step(
    plane: ControlPlane, good: Job, gate: Gate
) -> None:
    plane.submit("watched", {**good, "prompt": f"gate {gate.port}"})
    plane.update("watched")
    gate.open()
    plane.result("watched")

    updates = [post.document["output"] for post in plane.updates("watched")]

    assert all(update.keys() == {"step", "steps", "percent"} for update in updates)
    assert all(update["percent"] == round(100 * update["step"] / 8) for update in updates)
    steps = [update["step"] for update in updates]
    assert steps == sorted(set(steps))
    assert steps[-1] < 8
    # True at any speed: the worker, whose clock this is held against, had the job for less than this long.
    seconds = plane.results("watched")[0].at - plane.taken("watched").at
    assert len(updates) <= 2 * seconds


def test_an_update_that_the_platform_never_answers_is_given_up_before_the_result(
    plane: ControlPlane, good: Job, gate: Gate
) -> None:
    plane.ignores_updates = True
    try:
        plane.submit("slow", {**good, "prompt": f"gate {gate.port}"})
        plane.ignored("slow")
        gate.open()
        plane.result("slow")
        plane.given_up("slow")
    finally:
        plane.ignores_updates = False

    assert len(plane.results("slow")) == 1
    assert plane.updates("slow") == []


@pytest.mark.usefixtures("burst")
def test_no_update_comes_after_a_result(plane: ControlPlane) -> None:
    for job in plane.submitted:
        order = [post.is_update for post in plane.posts if post.job == job and post.status == 200]
        assert order == sorted(order, reverse=True), job


def test_an_unforeseen_failure_is_told_as_a_sentence_with_the_jobs_id_and_logged_whole(
    plane: ControlPlane, worker: LoopWorker, good: Job
) -> None:
    plane.submit("unforeseen", {**good, "prompt": "fail"})

    failed = plane.result("unforeseen")

    assert failed == {"error": "internal: the edit failed; the worker's log has the details under job unforeseen"}
    event = worker.wait_for_event("failed", "unforeseen")
    assert "RuntimeError: a secret of" in event["traceback"]


def test_a_failure_is_told_without_waiting_for_the_job_behind_it(
    plane: ControlPlane, good: Job, gate: Gate, next_gate: Gate, decoded: Gate
) -> None:
    plane.submit("failing", {**good, "prompt": f"fail gate {gate.port}"})
    gate.reached()
    plane.submit("behind", {**good, "prompt": f"gate {next_gate.port} decoded {decoded.port}"})
    decoded.reached()

    gate.open()

    assert plane.result("failing")["error"].startswith("internal: ")
    assert plane.results("behind") == []
    next_gate.open()
    assert "output" in plane.result("behind")


def test_a_full_device_fails_the_job_with_its_code_and_the_next_one_is_answered(plane: ControlPlane, good: Job) -> None:
    plane.submit("too-much", {**good, "prompt": "out_of_memory"})
    plane.submit("enough", good)

    assert plane.result("too-much")["error"].startswith("out_of_memory: ")
    assert "output" in plane.result("enough")


def test_a_device_that_was_full_once_is_tried_again_with_a_warning(plane: ControlPlane, good: Job) -> None:
    plane.submit("retried", {**good, "prompt": "out_of_memory_once"})

    (warning,) = plane.result("retried")["output"]["warnings"]

    assert "memory" in warning


def test_a_reply_over_the_limit_is_never_posted_but_told(plane: ControlPlane, good: Job) -> None:
    plane.submit("oversize", {**good, "width": 1024, "height": 1024})  # noise: 4 MB as a PNG in base64

    error = plane.result("oversize")["error"]

    assert error.startswith("output_too_large: ")
    assert "1,000,000" in error
    assert plane.refused("oversize") == []


def test_a_result_that_the_platform_could_not_take_is_posted_again(plane: ControlPlane, good: Job) -> None:
    plane.fail_results(1)
    plane.submit("outage", {**good, "prompt": "x"})

    assert "output" in plane.result("outage")
    assert len(plane.results("outage")) == 1
    assert len(plane.refused("outage")) == 1


def test_every_line_of_the_log_is_json_without_a_prompt_or_a_picture(worker: LoopWorker, burst: Ends) -> None:
    for job in burst:
        worker.wait_for_event("delivered", job)
    for job in GOOD:
        worker.wait_for_event("edited", job)  # which is logged beside the reply
    banner, *lines = [line for line in worker.output().splitlines() if not line.startswith('{"time"')]
    events = worker.events()

    assert banner.startswith("--- Starting Serverless Worker")
    assert all(json.loads(line).keys() == {"requestId", "message", "level"} for line in lines)  # the SDK's own
    assert all(event.keys() >= {"time", "level", "event"} for event in events)
    assert {event["job"] for event in events if event["event"] in ("edited", "refused")} >= burst.keys()
    assert worker.errors() == ""
    assert SECRET not in worker.output()
    assert re.search(r"[A-Za-z0-9+/]{100}", worker.output().replace(str(Path.cwd()), "")) is None


def test_arguments_that_the_sdk_takes_out_of_argv_or_leaves_there_do_no_harm(worker: LoopWorker, burst: Ends) -> None:
    assert set(ARGUMENTS) < set(worker.process.args)  # type: ignore[arg-type]
    assert "output" in burst["first"]


@pytest.mark.usefixtures("burst")
def test_the_sdk_does_not_log_at_its_default_level_where_each_result_is_printed_twice(worker: LoopWorker) -> None:
    assert '"level": "DEBUG"' not in worker.output()


def test_a_library_that_exits_fails_its_job_and_not_the_worker(plane: ControlPlane, good: Job) -> None:
    plane.submit("exit", {**good, "prompt": "leave"})
    plane.submit("after-exit", good)

    assert plane.result("exit")["error"].startswith("internal: ")
    assert "output" in plane.result("after-exit")


def test_sigterm_finishes_the_jobs_that_were_taken_and_posts_them(
    plane: ControlPlane, worker: LoopWorker, good: Job, gate: Gate, decoded: Gate
) -> None:
    plane.submit("last", {**good, "prompt": f"gate {gate.port}"})
    gate.reached()
    plane.submit("prefetched", {**good, "prompt": f"decoded {decoded.port}"})
    decoded.reached()

    worker.process.terminate()
    gate.open()
    code = worker.process.wait(PATIENCE)

    assert code == 0
    assert [list(post.document) for job in ("last", "prefetched") for post in plane.results(job)] == [["output"]] * 2
