import asyncio
import base64
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from qwen_edit.edit.hooks import Step
from qwen_edit.serving import progress as module
from qwen_edit.serving.progress import Progress
from tests.support.clock import Clock
from tests.support.patience import PATIENCE

Work = Callable[[Progress], Awaitable[None]]


class Platform:
    """Takes updates as the platform does: at once, or when it is told to."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.events: list[str] = []
        self.updates: list[Mapping[str, Any]] = []
        self.begun = asyncio.Event()
        self.ready = asyncio.Event()
        if at_once:
            self.ready.set()

    async def post(self, update: Mapping[str, Any]) -> None:
        self.events.append(f"{update['step']} begun")
        self.begun.set()
        await self.ready.wait()
        self.updates.append(json.loads(json.dumps(update)))
        self.events.append(f"{update['step']} taken")


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step may have an update."""
    monkeypatch.setattr(module, "INTERVAL", 0.0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result waits for an update as long as it takes."""
    monkeypatch.setattr(module, "PATIENCE", PATIENCE)


def step(number: int, steps: int = 8) -> Step:
    return Step(number, steps, lambda: Image.new("RGB", (256, 128), "red"))


def doing(*numbers: int) -> Work:
    """The steps of a job, on a thread of its own, as the device has one."""

    def work(progress: Progress) -> None:
        for number in numbers:
            progress.on_step(step(number))

    return lambda progress: asyncio.to_thread(work, progress)


async def report(platform: Platform, work: Work, *, with_preview: bool = False) -> None:
    """A job, and its result, which is one of the platform's events."""
    async with Progress(platform.post, with_preview) as progress:
        await work(progress)
    platform.events.append("result")


async def settled() -> None:
    """Let the event loop do all that it can do without news from outside."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await test
            await settled()

    asyncio.run(main())


@pytest.mark.usefixtures("always_due")
def test_an_update_says_how_far_the_job_is() -> None:
    platform = Platform()

    run(report(platform, doing(2)))

    assert platform.updates == [{"step": 2, "steps": 8, "percent": 25}]


def test_at_most_two_updates_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    platform = Platform()

    async def work(progress: Progress) -> None:
        for number in range(1, 18):
            clock.now += 0.125
            progress.on_step(step(number, 20))
            await settled()

    run(report(platform, work))

    assert [update["step"] for update in platform.updates] == [4, 8, 12, 16]


@pytest.mark.usefixtures("always_due")
def test_the_last_step_has_no_update() -> None:
    platform = Platform()

    run(report(platform, doing(8)))

    assert platform.events == ["result"]


@pytest.mark.usefixtures("always_due", "patient")
def test_the_result_waits_for_the_update_that_is_on_its_way() -> None:
    platform = Platform(at_once=False)
    over = asyncio.Event()

    async def work(progress: Progress) -> None:
        await doing(7)(progress)
        over.set()

    async def main() -> None:
        reporting = asyncio.ensure_future(report(platform, work))
        await over.wait()
        await settled()
        assert platform.events == ["7 begun"]
        platform.ready.set()
        await reporting

    run(main())

    assert platform.events == ["7 begun", "7 taken", "result"]


@pytest.mark.usefixtures("always_due", "patient")
def test_one_update_at_a_time_is_on_its_way() -> None:
    platform = Platform(at_once=False)

    async def work(progress: Progress) -> None:
        await doing(1, 2, 3)(progress)
        await settled()
        platform.ready.set()

    run(report(platform, work))

    assert platform.events == ["1 begun", "1 taken", "result"]


@pytest.mark.usefixtures("always_due")
def test_an_update_that_the_platform_does_not_take_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    platform = Platform(at_once=False)

    async def main() -> None:
        await report(platform, doing(1))
        platform.ready.set()

    run(main())

    assert platform.events == ["1 begun", "result"]


@pytest.mark.usefixtures("always_due")
def test_nothing_is_sent_after_the_result() -> None:
    platform = Platform()

    async def main() -> None:
        async with Progress(platform.post, with_preview=False) as progress:
            pass
        await doing(3)(progress)

    run(main())

    assert platform.events == []


@pytest.mark.usefixtures("always_due")
def test_a_cancelled_job_recalls_its_update() -> None:
    platform = Platform(at_once=False)

    async def work(progress: Progress) -> None:
        await doing(1)(progress)
        await platform.begun.wait()
        raise asyncio.CancelledError

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await report(platform, work)
        platform.ready.set()

    run(main())

    assert platform.events == ["1 begun"]


@pytest.mark.usefixtures("always_due")
def test_an_update_that_fails_does_not_fail_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(_update: Mapping[str, Any]) -> None:
        raise ConnectionResetError("gone")

    async def main() -> None:
        async with Progress(refuse, with_preview=False) as progress:
            await doing(1)(progress)

    run(main())

    assert json.loads(capsys.readouterr().out)["event"] == "progress not sent"


@pytest.mark.usefixtures("always_due")
def test_a_preview_is_a_small_webp() -> None:
    platform = Platform()

    run(report(platform, doing(4), with_preview=True))

    (update,) = platform.updates
    data = base64.b64decode(update["preview"])
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (256, 128))
    assert len(data) < 10_000


@pytest.mark.usefixtures("always_due")
def test_nothing_happens_where_nobody_listens() -> None:
    async def main() -> None:
        async with Progress(None, with_preview=True) as progress:
            await asyncio.to_thread(progress.on_step, Step(1, 8, lambda: pytest.fail("a preview was made")))

    run(main())
