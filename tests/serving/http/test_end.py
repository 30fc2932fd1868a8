"""How a server ends: at a signal, at a second one, and without its device."""

import concurrent.futures
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import Gate
from tests.support.http_worker import HttpWorker, serving
from tests.support.patience import PATIENCE

Job = dict[str, Any]


def waiting_for(server: HttpWorker, fields: Job) -> "concurrent.futures.Future[Any]":
    """A caller on a thread of its own."""
    pool = concurrent.futures.ThreadPoolExecutor(1)
    asked = pool.submit(lambda: server.ask("/runsync", {"input": fields}))
    pool.shutdown(wait=False)
    return asked


def test_sigterm_takes_nothing_more_and_finishes_what_runs(models: Path, tmp_path: Path, good: Job, gate: Gate) -> None:
    with serving(models, tmp_path) as server:
        asked = waiting_for(server, {**good, "prompt": f"gate {gate.port}"})
        gate.reached()

        server.worker.process.send_signal(signal.SIGTERM)
        server.worker.wait_for_event("ended by a signal")
        late, ping = server.ask("/run", {"input": good}), server.ask("/ping")
        gate.open()

        assert (late.status, ping.status) == (503, 503)
        assert late.json()["error"] == "overloaded: the worker is about to end and takes no more"
        assert asked.result(PATIENCE).json()["status"] == "COMPLETED"
        assert server.worker.process.wait(PATIENCE) == 0


def test_what_does_not_end_in_time_is_stopped(models: Path, tmp_path: Path, good: Job, gate: Gate) -> None:
    with serving(models, tmp_path, QWEN_EDIT_DRAIN_S="0") as server:
        asked = waiting_for(server, {**good, "prompt": f"gate {gate.port}"})
        gate.reached()

        code = server.worker.terminate()

        assert asked.result(PATIENCE).json()["status"] == "CANCELLED"
        assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    models: Path, tmp_path: Path, good: Job, gate: Gate, number: signal.Signals
) -> None:
    with serving(models, tmp_path) as server:
        server.ask("/run", {"input": {**good, "prompt": f"gate {gate.port}"}})
        gate.reached()
        server.worker.process.send_signal(signal.SIGTERM)
        server.worker.wait_for_event("ended by a signal")

        server.worker.process.send_signal(number)

        assert server.worker.process.wait(PATIENCE) == 128 + number


def test_a_lost_device_ends_the_process_with_a_status_that_says_so(models: Path, tmp_path: Path, good: Job) -> None:
    with serving(models, tmp_path) as server:
        state = server.ask("/runsync", {"input": {**good, "prompt": "die"}}).json()

        assert state["status"] == "FAILED"
        assert server.worker.process.wait(PATIENCE) == 1


def test_nothing_that_was_asked_or_made_is_in_the_log(models: Path, tmp_path: Path, good: Job) -> None:
    secret, key = "sphinx of black quartz", "correct-horse-battery"
    with serving(models, tmp_path, QWEN_EDIT_API_KEY=key) as server:
        server.ask("/runsync", {"input": {**good, "prompt": secret}}, authorization=key)
        server.ask("/runsync", {"input": {**good, "prompt": secret, "rank": 7}}, authorization=key)
        server.ask(f"/run?{secret.replace(' ', '+')}", {"input": {}}, authorization=f"{key}x")
        server.worker.terminate()
        told = server.worker.output() + server.worker.errors()

    assert secret not in told
    assert key not in told
    assert good["image"][:100] not in told
    assert server.worker.errors() == ""
