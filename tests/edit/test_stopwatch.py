from collections.abc import Callable

import pytest

from qwen_edit.edit import stopwatch
from qwen_edit.edit.stopwatch import Stopwatch
from tests.support.clock import Clock


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let milliseconds go by."""
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)

    def work(milliseconds: float) -> None:
        clock.now += milliseconds / 1000

    return work


def test_each_moment_is_charged_to_the_innermost_stage(work: Callable[[float], None]) -> None:
    watch = Stopwatch()
    work(1000)
    with watch.stage("outer"):
        work(10)
        with watch.stage("inner"):
            work(30)
        work(5)
    work(1000)

    assert watch.milliseconds == pytest.approx({"inner": 30, "outer": 15})


def test_a_stage_that_is_entered_twice_adds_up(work: Callable[[float], None]) -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("decode"):
            work(10)
        work(1000)

    assert watch.milliseconds == pytest.approx({"decode": 20})


def test_the_device_is_waited_for_before_each_reading(work: Callable[[float], None]) -> None:
    waits: list[None] = []

    def settle() -> None:
        waits.append(None)
        work(10)

    watch = Stopwatch(settle)
    with watch.stage("denoise"):
        assert len(waits) == 1

    assert len(waits) == 2
    assert watch.milliseconds == pytest.approx({"denoise": 10})


def test_a_stage_that_fails_is_charged_and_closed(work: Callable[[float], None]) -> None:
    def work_and_fail() -> None:
        work(20)
        raise ValueError("no")

    watch = Stopwatch()
    with watch.stage("outer"):
        with pytest.raises(ValueError, match="no"), watch.stage("inner"):
            work_and_fail()
        work(10)

    assert watch.milliseconds == pytest.approx({"inner": 20, "outer": 10})
