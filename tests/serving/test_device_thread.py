import json
import threading
from collections.abc import Callable, Iterator

import pytest

from qwen_edit.serving.device_thread import DeviceThread, Patience

QUICK = Patience(stop=0.01, least=0.01, times=0.0, first=0.01, close=0.01, look=0.001)
PATIENT = Patience(close=60.0)


@pytest.fixture
def make() -> Iterator[Callable[..., tuple[DeviceThread, threading.Event]]]:
    """A thread with some patience, and an event that says that it is lost."""
    threads: list[DeviceThread] = []

    def build(patience: Patience = PATIENT) -> tuple[DeviceThread, threading.Event]:
        lost = threading.Event()
        threads.append(DeviceThread(lost.set, patience))
        return threads[-1], lost

    yield build
    for thread in threads:
        thread.close()


Make = Callable[..., tuple[DeviceThread, threading.Event]]


def test_work_is_done_in_order_on_one_thread_and_its_errors_go_to_whoever_waits(make: Make) -> None:
    device, _ = make()
    names = [device.submit(lambda: threading.current_thread().name) for _ in range(3)]

    def fail() -> None:
        raise SystemExit("a library gives up")

    failed = device.submit(fail)
    after = device.submit(lambda: 7)

    assert {name.result(60) for name in names} == {"device"}
    with pytest.raises(SystemExit):
        failed.result(60)
    assert after.result(60) == 7


def test_work_that_was_cancelled_before_its_turn_is_not_done(make: Make) -> None:
    device, _ = make()
    gate, done = threading.Event(), threading.Event()
    device.submit(gate.wait)
    waiting = device.submit(done.set)

    assert waiting.cancel()
    gate.set()

    assert device.close()
    assert not done.is_set()


@pytest.mark.parametrize("was_stopped", [True, False], ids=["after its stop", "by itself"])
def test_an_edit_that_does_not_come_back_loses_the_device(
    make: Make, was_stopped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    device, lost = make(QUICK if not was_stopped else Patience(stop=0.01, close=0.01, look=0.001))
    gate = threading.Event()

    def hang() -> None:
        device.begin()
        if was_stopped:
            device.stopped()
        gate.wait()

    device.submit(hang)

    assert lost.wait(60)
    assert device.is_lost
    with pytest.raises(RuntimeError):
        device.submit(lambda: None)
    assert not device.close()  # and at once: nobody waits for what hangs
    gate.set()
    assert '"event": "device lost"' in capsys.readouterr().out


def test_an_edit_that_shows_signs_of_life_may_take_its_time(make: Make) -> None:
    device, lost = make(Patience(least=60.0, first=60.0, look=0.001))

    def edit() -> int:
        device.begin()
        for _ in range(100):
            device.alive()
        device.end()
        return 1

    assert device.submit(edit).result(60) == 1
    assert not lost.is_set()


def test_an_idle_device_is_not_lost(make: Make) -> None:
    device, lost = make(QUICK)
    looked = threading.Event()
    silence = device._silence

    def look() -> str | None:
        looked.set()
        return silence()

    device._silence = look  # type: ignore[method-assign]
    assert device.submit(lambda: json.dumps(1)).result(60) == "1"  # from now on it is watched

    assert looked.wait(60)
    assert not lost.is_set()
    assert device.submit(lambda: json.dumps(1)).result(60) == "1"
