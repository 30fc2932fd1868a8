import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from qwen_edit.serving.queue import outbox as module
from qwen_edit.serving.queue.outbox import KEPT_S, Outbox, RefusedError
from tests.support.moved_clock import MovedClock

Fails = Callable[[MovedClock], Exception | None]


class Platform:
    """Takes results, unless it fails; what it took, in order."""

    def __init__(self, clock: MovedClock, fails: Fails) -> None:
        self._clock = clock
        self._fails = fails
        self.attempts = 0
        self.taken: list[tuple[str, bytes]] = []

    async def send(self, job_id: str, body: bytes) -> None:
        self.attempts += 1
        if (error := self._fails(self._clock)) is not None:
            raise error
        self.taken.append((job_id, body))


def delivered(fails: Fails, *jobs: str) -> tuple[bool, Platform, MovedClock]:
    clock = MovedClock()
    platform = Platform(clock, fails)

    async def run() -> bool:
        outbox = Outbox(platform.send, clock)
        for job in jobs or ("job",):
            outbox.post(job, b"result")
        return await outbox.finish()

    return asyncio.run(run()), platform, clock


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("cut"),
        ConnectionRefusedError("nobody"),
        TimeoutError(),
        ConnectionError("the platform answered 503"),
        RuntimeError("Session is closed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_result_survives_an_outage_of_ten_minutes_whatever_is_raised(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    was_delivered, platform, clock = delivered(lambda clock: error if clock.seconds < 600 else None)

    assert was_delivered
    assert platform.taken == [("job", b"result")]
    assert clock.seconds >= 600
    assert clock.sleeps[:6] == [1, 2, 4, 8, 16, 30]
    assert platform.attempts < 40
    assert [event["event"] for event in events(capsys)] == ["delivery fails", "delivered"]


def test_what_the_platform_will_never_take_is_tried_once(capsys: pytest.CaptureFixture[str]) -> None:
    was_delivered, platform, _ = delivered(lambda _: RefusedError("the platform answered 400"))

    assert not was_delivered
    assert platform.attempts == 1
    (event,) = events(capsys)
    assert (event["event"], event["level"], event["job"]) == ("not delivered", "error", "job")
    assert "400" in event["error"]


@pytest.mark.parametrize(("refused", "is_whole"), [("first", False), ("second", True)])
def test_a_loss_is_told_at_the_end_however_long_ago_and_a_refused_repetition_is_none(
    refused: str, is_whole: bool
) -> None:
    clock = MovedClock()
    attempts: list[str] = []

    async def send(job_id: str, _: bytes) -> None:
        attempts.append(job_id)
        if refused == ("first" if len(attempts) == 1 else "second"):
            raise RefusedError("the platform answered 404")

    async def run() -> bool:
        outbox = Outbox(send, clock)
        outbox.post("job", b"result")
        await outbox.finish()
        outbox.post_again("job")
        return await outbox.finish()

    assert asyncio.run(run()) is is_whole


def test_an_outage_without_end_is_given_up_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    was_delivered, _, clock = delivered(lambda _: ConnectionError("gone"))

    assert not was_delivered
    assert clock.seconds >= 600
    assert [event["event"] for event in events(capsys)] == ["delivery fails", "not delivered"]


def test_a_post_that_hangs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPT_S", 0.01)
    attempts: list[str] = []

    async def send(job_id: str, _body: bytes) -> None:
        attempts.append(job_id)
        if len(attempts) == 1:
            await asyncio.Event().wait()

    async def run() -> bool:
        outbox = Outbox(send, MovedClock())
        outbox.post("job", b"result")
        return await outbox.finish()

    assert asyncio.run(run())
    assert attempts == ["job", "job"]


def test_one_result_that_fails_holds_up_no_other() -> None:
    clock, taken = MovedClock(), []

    async def send(job_id: str, _body: bytes) -> None:
        if job_id == "stuck" and clock.seconds < 300:
            raise ConnectionError
        taken.append(job_id)

    async def run() -> None:
        outbox = Outbox(send, clock)
        outbox.post("stuck", b"")
        outbox.post("other", b"")
        await outbox.finish()

    asyncio.run(run())
    assert taken == ["other", "stuck"]


def test_a_job_that_comes_again_gets_its_result_again_for_some_minutes() -> None:
    clock = MovedClock()
    platform = Platform(clock, lambda _: None)

    async def run() -> list[bool]:
        outbox = Outbox(platform.send, clock)
        known = [outbox.post_again("job")]
        outbox.post("job", b"result")
        await outbox.finish()
        known.append(outbox.post_again("job"))
        await outbox.finish()
        clock.seconds += KEPT_S + 1
        known.append(outbox.post_again("job"))
        return known

    assert asyncio.run(run()) == [False, True, False]
    assert platform.taken == [("job", b"result")] * 2


def test_much_that_waits_is_a_reason_to_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    release = asyncio.Event()

    async def send(_job_id: str, _body: bytes) -> None:
        await release.wait()

    async def run() -> list[bool]:
        outbox = Outbox(send, MovedClock())
        outbox.post("one", b"123456")
        full = [outbox.is_full]
        outbox.post("two", b"123456")
        full.append(outbox.is_full)
        release.set()
        await outbox.finish()
        return [*full, outbox.is_full]

    assert asyncio.run(run()) == [False, True, False]
