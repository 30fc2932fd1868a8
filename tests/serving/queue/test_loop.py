import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from qwen_edit.serving.queue import outbox
from qwen_edit.serving.queue.loop import Queue
from tests.support.moved_clock import MovedClock

Answer = list[object] | Exception


class Platform:
    """Answers each poll with the next of some answers, and holds the poll open when there is none left."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.is_receiving = False
        self.polls = 0
        self.asked: list[int] = []
        self.held: list[list[str]] = []
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.idle = asyncio.Event()
        self.to_stop: list[str] = []
        self.stop_now = asyncio.Event()

    async def take(self, number: int) -> list[object]:
        self.polls += 1
        self.asked.append(number)
        if not self._answers:
            self.idle.set()
            await asyncio.Event().wait()
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def stops(self) -> list[str]:
        await self.stop_now.wait()
        self.stop_now.clear()
        return self.to_stop

    async def send(self, job_id: str, body: bytes) -> None:
        self.posts.append((job_id, json.loads(body)))

    def holds(self, job_ids: list[str]) -> None:
        self.held.append(job_ids)


Handle = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def echo(job: Mapping[str, Any]) -> dict[str, Any]:
    return {"echo": job["input"]}


def job(name: str) -> dict[str, Any]:
    return {"id": name, "input": name}


def served(
    build: Callable[[], Platform], handle: Handle = echo, concurrency: int = 2
) -> tuple[int, Platform, MovedClock]:
    """Serve until the platform has nothing more to hand out."""
    clock = MovedClock()

    async def run() -> tuple[int, Platform]:
        platform = build()
        queue = Queue(platform, handle, concurrency, clock)
        running = asyncio.ensure_future(queue.run())
        await platform.idle.wait()
        queue.stop()
        return await running, platform

    return *asyncio.run(run()), clock


def events(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]


def test_each_job_is_answered_and_the_heartbeat_hears_of_those_in_hand() -> None:
    status, platform, _ = served(lambda: Platform([job("one"), job("two")], [job("three")]))

    assert status == 0
    assert sorted(platform.posts) == [(name, {"output": {"echo": name}}) for name in ("one", "three", "two")]
    assert ["one", "two"] in platform.held
    assert platform.held[-1] == []


def test_polls_that_fail_pause_longer_and_longer_and_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [ConnectionRefusedError("nobody"), ValueError("junk"), TypeError(), *[OSError()] * 5]

    _, platform, clock = served(lambda: Platform(*failures, [job("one")]))

    assert clock.sleeps[:8] == [1, 2, 4, 8, 16, 30, 30, 30]
    assert [post[0] for post in platform.posts] == ["one"]
    assert events(capsys)[:2] == ["polls fail", "polls go well"]


def test_polls_that_bring_nothing_at_once_are_a_second_apart() -> None:
    _, platform, clock = served(lambda: Platform([], [], [], [job("one")]))

    assert clock.sleeps[:3] == [1, 1, 1]
    assert platform.polls == 5


def test_a_job_that_comes_again_and_again_is_asked_for_once_a_second() -> None:
    begun = asyncio.Event()

    async def handle(_: Mapping[str, Any]) -> dict[str, Any]:
        await begun.wait()
        return {}

    async def run() -> tuple[Platform, MovedClock]:
        again: list[Answer] = [[job("one")] for _ in range(4)]
        platform, clock = Platform(*again), MovedClock()
        queue = Queue(platform, handle, 2, clock)
        running = asyncio.ensure_future(queue.run())
        await platform.idle.wait()
        begun.set()
        queue.stop()
        await running
        return platform, clock

    platform, clock = asyncio.run(run())
    assert clock.sleeps[:3] == [1, 1, 1]
    assert [post[0] for post in platform.posts] == ["one"]


def test_no_job_is_taken_while_too_much_waits_for_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_BYTES", 0)
    order: list[str] = []

    class Slow(Platform):
        async def take(self, number: int) -> list[object]:
            order.append("take")
            return await super().take(number)

        async def send(self, job_id: str, body: bytes) -> None:
            for _ in range(10):  # long after its job was done
                await asyncio.sleep(0)
            await super().send(job_id, body)
            order.append(f"{job_id} delivered")

    served(lambda: Slow([job("one")], [job("two")]), concurrency=1)

    assert order == ["take", "one delivered", "take", "two delivered", "take"]


@pytest.mark.parametrize("junk", [None, 7, "job", [], {}, {"id": 7, "input": {}}, {"id": "", "input": {}}], ids=str)
def test_junk_among_jobs_costs_none_of_them(junk: object, capsys: pytest.CaptureFixture[str]) -> None:
    status, platform, _ = served(lambda: Platform([junk, job("one")]))

    assert status == 0
    assert [post[0] for post in platform.posts] == ["one"]
    assert "not a job" in events(capsys)


def test_an_id_in_hand_is_not_taken_again_and_one_that_is_done_gets_its_result_again() -> None:
    edits: list[str] = []
    release = asyncio.Event()

    async def handle(job: Mapping[str, Any]) -> dict[str, Any]:
        edits.append(job["id"])
        await release.wait()
        return {"number": len(edits)}

    async def run() -> Platform:
        platform = Platform([job("one"), job("one")], [job("one")])
        queue = Queue(platform, handle, 4, MovedClock())
        running = asyncio.ensure_future(queue.run())
        await platform.idle.wait()
        release.set()
        while not platform.posts:
            await asyncio.sleep(0)
        queue._begin(job("one"))
        queue.stop()
        await running
        return platform

    platform = asyncio.run(run())
    assert edits == ["one"]
    assert platform.posts == [("one", {"output": {"number": 1}})] * 2


def test_no_more_is_asked_for_than_there_are_slots_and_a_result_on_its_way_takes_none() -> None:
    hanging = asyncio.Event()

    class Slow(Platform):
        async def send(self, job_id: str, body: bytes) -> None:
            if job_id == "one":
                await hanging.wait()
            await super().send(job_id, body)
            hanging.set()

    _, platform, _ = served(lambda: Slow([job("one")], [job("two")]), concurrency=1)

    assert platform.asked == [1, 1, 1]
    assert [post[0] for post in platform.posts] == ["two", "one"]


def test_a_stopped_job_is_cancelled_and_nothing_is_posted_for_it() -> None:
    ended: list[str] = []

    async def handle(job: Mapping[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(job["id"])
        return {}

    async def run() -> Platform:
        platform = Platform([job("one")])
        queue = Queue(platform, handle, 2, MovedClock())
        running = asyncio.ensure_future(queue.run())
        await platform.idle.wait()
        platform.to_stop = ["one", "of another worker"]
        platform.stop_now.set()
        while not ended:
            await asyncio.sleep(0)
        queue.stop()
        assert await running == 0
        return platform

    assert asyncio.run(run()).posts == []


def test_a_stop_closes_the_poll_at_once_and_finishes_what_is_in_hand() -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def handle(job: Mapping[str, Any]) -> dict[str, Any]:
        begun.set()
        await release.wait()
        return {"done": job["id"]}

    async def run() -> tuple[int, Platform]:
        platform = Platform([job("one")])
        queue = Queue(platform, handle, 2, MovedClock())
        running = asyncio.ensure_future(queue.run())
        await begun.wait()
        await platform.idle.wait()  # a poll is open
        queue.stop()
        release.set()
        return await running, platform

    status, platform = asyncio.run(run())
    assert status == 0
    assert platform.posts == [("one", {"output": {"done": "one"}})]


def test_a_lost_device_costs_the_job_that_noticed_it_and_leaves_the_others_to_the_platform() -> None:
    lost = asyncio.Event()

    async def handle(job: Mapping[str, Any]) -> dict[str, Any] | None:
        if job["id"] == "broken":
            lost.set()
            return {"error": "internal: the edit failed", "refresh_worker": True}
        await lost.wait()
        return None

    async def run() -> tuple[int, Platform]:
        platform = Platform([job("waiting"), job("broken")], [job("late")])
        queue = Queue(platform, handle, 2, MovedClock())
        return await queue.run(), platform

    status, platform = asyncio.run(run())
    assert status == 1
    assert platform.posts == [("broken", {"error": "internal: the edit failed", "stopPod": True})]
