"""handler.py as the platform runs it: what becomes of the process, and edits with the real pipeline."""

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.control_plane import ControlPlane
from tests.support.gates import Gate
from tests.support.loop_worker import LoopWorker, running
from tests.support.patience import PATIENCE
from tests.support.places import ROOT
from tests.support.programs import hub_of

NOTING_THREADS = """
import os, threading
start = threading.Thread.start
def noted(thread):
    with open({path!r}, "a") as file:
        print(os.getpid(), thread.name, file=file)
    start(thread)
threading.Thread.start = noted
"""


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as plane:
        yield plane


@pytest.fixture
def good(photo_base64: str) -> dict[str, Any]:
    return {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256, "seed": 5}


def children_of(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def command_of(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")


def ended(worker: LoopWorker) -> int:
    return worker.process.wait(PATIENCE)


def test_the_heartbeats_process_is_no_fork_and_does_not_load_the_model(
    plane: ControlPlane, models: Path, tmp_path: Path
) -> None:
    # That child runs handler.py again, under another name, before its first heartbeat. A load would have begun by
    # then, on a thread of its own.
    threads = tmp_path / "threads"
    (tmp_path / "sitecustomize.py").write_text(NOTING_THREADS.format(path=str(threads)))

    with running(plane, models, tmp_path / "worker", PYTHONPATH=f"{tmp_path}:{ROOT}") as worker:
        plane.pinged()
        commands = [command_of(child) for child in children_of(worker.process.pid)]
        code = worker.terminate()

    assert any("multiprocessing.spawn import spawn_main" in command for command in commands)
    assert not any("handler.py" in command for command in commands)  # a fork has its parent's command
    loading = [line.split()[0] for line in threads.read_text().splitlines() if " device" in line]
    assert loading == [str(worker.process.pid)]
    assert code == 0
    assert [event["event"] for event in worker.events()] == ["loaded", "warm"]


def test_the_real_pipeline_edits_reports_and_is_cancelled_in_the_loop(
    plane: ControlPlane, models: Path, tmp_path: Path, good: dict[str, Any]
) -> None:
    with (
        Gate() as never,
        Gate() as gate,
        running(plane, models, tmp_path, "-m", "tests.support.held_device") as worker,
    ):
        plane.submit("cancelled", {**good, "prompt": f"gate {never.port}"})
        plane.update("cancelled")
        plane.submit("shown", {**good, "prompt": f"gate {gate.port}", "preview": True})
        plane.cancel("cancelled")
        plane.update("shown")
        gate.open()
        shown = plane.result("shown")
        code = worker.terminate()

    assert code == 0
    assert len(worker.events("loaded")) == 1
    assert plane.results("cancelled") == []
    with Image.open(io.BytesIO(base64.b64decode(shown["output"]["image"]))) as picture:
        assert picture.size == (256, 256)
    preview = plane.updates("shown")[0].document["output"]["preview"]
    with Image.open(io.BytesIO(base64.b64decode(preview))) as picture:
        assert picture.format == "WEBP"
        assert max(picture.size) <= 256
    assert re.search(r"[A-Za-z0-9+/]{100}", worker.output()) is None


def test_a_worker_that_may_download_fetches_its_weights_before_its_first_job(
    plane: ControlPlane, models: Path, tmp_path: Path, good: dict[str, Any]
) -> None:
    plane.submit("patient", good)
    empty = tmp_path / "empty"

    with (
        hub_of(models) as hub,
        running(plane, empty, tmp_path, QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url) as worker,
    ):
        reply = plane.result("patient")
        worker.terminate()

    assert reply["output"]["model_config"]["revision"] == "b" * 40


def test_a_worker_without_weights_ends_before_it_takes_a_job_and_says_why(
    plane: ControlPlane, tmp_path: Path, good: dict[str, Any]
) -> None:
    plane.submit("job", good)

    with running(plane, tmp_path / "nowhere", tmp_path) as worker:
        code = ended(worker)

    assert code == 1
    assert plane.takes == []
    (ping,) = plane.pings
    assert ping.query["status"] == ["unhealthy"]
    (reason,) = ping.query["reason"]
    assert "MODEL_CACHE_DIR" in reason
    assert str(tmp_path) not in reason


def test_the_image_lifts_the_sdks_demand_for_a_tenth_of_the_disk(
    plane: ControlPlane, models: Path, tmp_path: Path
) -> None:
    # A baked image fills its disk. That this variable governs the check is seen by demanding all of it.
    checks = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_DISK_PERCENT": "100"}

    with running(plane, models, tmp_path, "-m", "tests.support.fake_device", **checks) as worker:
        code = ended(worker)

    assert code == 1
    assert plane.pings[-1].query["check"] == ["_disk_check"]
    assert re.search(r"RUNPOD_MIN_DISK_PERCENT=[01]\b", (ROOT / "Dockerfile").read_text())


def test_a_version_of_the_sdk_that_loses_jobs_is_not_accepted() -> None:
    assert re.search(r'"runpod>=1\.12', (ROOT / "pyproject.toml").read_text())
