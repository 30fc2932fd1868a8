import time

import pytest

from qwen_edit.edit.stopwatch import Stopwatch


def test_each_moment_is_charged_to_the_innermost_stage() -> None:
    watch = Stopwatch()
    began = time.perf_counter()
    with watch.stage("outer"):
        time.sleep(0.01)
        with watch.stage("inner"):
            time.sleep(0.03)
        time.sleep(0.01)
    total = (time.perf_counter() - began) * 1000

    assert watch.milliseconds["inner"] >= 30
    assert watch.milliseconds["outer"] >= 20
    assert watch.milliseconds["inner"] + watch.milliseconds["outer"] <= total


def test_a_stage_that_is_entered_twice_adds_up() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("decode"):
            time.sleep(0.01)

    assert watch.milliseconds["decode"] >= 20


def test_the_device_is_waited_for_before_each_reading() -> None:
    readings = []
    watch = Stopwatch(lambda: readings.append(time.perf_counter()))
    with watch.stage("denoise"):
        assert len(readings) == 1

    assert len(readings) == 2


def test_a_stage_that_fails_is_charged_and_closed() -> None:
    watch = Stopwatch()
    with watch.stage("outer"):
        with pytest.raises(ValueError, match="no"), watch.stage("inner"):
            raise ValueError("no")
        time.sleep(0.01)

    assert watch.milliseconds["outer"] >= 10
    assert "inner" in watch.milliseconds
