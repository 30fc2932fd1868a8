import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from qwen_edit.edit.hooks import Step
from qwen_edit.serving import progress as module
from qwen_edit.serving.progress import Progress


class Platform:
    """Takes updates as the platform does, after a while."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.begun: list[Mapping[str, Any]] = []
        self.taken: list[tuple[float, Mapping[str, Any]]] = []

    async def post(self, update: Mapping[str, Any]) -> None:
        self.begun.append(update)
        await asyncio.sleep(self.seconds)
        self.taken.append((time.monotonic(), json.loads(json.dumps(update))))


def step(number: int, steps: int = 8) -> Step:
    return Step(number, steps, lambda: Image.new("RGB", (256, 128), "red"))


def run(platform: Platform, job: Callable[[Progress], None], *, with_preview: bool = False) -> float:
    """Run a job on a thread of its own, as the device does, and give the time at which its result could be posted."""

    async def main() -> float:
        async with Progress(platform.post, with_preview) as progress:
            await asyncio.to_thread(job, progress)
        result_at = time.monotonic()
        await asyncio.sleep(0.1)  # whatever is still under way would arrive now
        return result_at

    return asyncio.run(main())


def steps_of(platform: Platform) -> list[int]:
    return [update["step"] for _, update in platform.taken]


def test_an_update_says_how_far_the_job_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform()

    run(platform, lambda progress: progress.on_step(step(2)))

    assert [update for _, update in platform.taken] == [{"step": 2, "steps": 8, "percent": 25}]


def test_at_most_two_updates_a_second() -> None:
    platform = Platform()

    def job(progress: Progress) -> None:
        for number in range(1, 60):
            progress.on_step(step(number, 60))
            time.sleep(0.03)

    began = time.monotonic()
    run(platform, job)

    assert 1 <= len(platform.taken) <= (time.monotonic() - began) * 2


def test_the_last_step_has_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform()

    run(platform, lambda progress: progress.on_step(step(8)))

    assert platform.taken == []


def test_the_result_waits_for_the_update_that_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform(seconds=0.2)

    result_at = run(platform, lambda progress: progress.on_step(step(7)))

    assert steps_of(platform) == [7]
    assert platform.taken[0][0] <= result_at


def test_one_update_at_a_time_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform(seconds=0.2)

    def job(progress: Progress) -> None:
        for number in (1, 2, 3):
            progress.on_step(step(number))

    run(platform, job)

    assert steps_of(platform) == [1]


def test_an_update_that_the_platform_does_not_take_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    platform = Platform(seconds=60)
    began = time.monotonic()

    result_at = run(platform, lambda progress: progress.on_step(step(1)))

    assert len(platform.begun) == 1
    assert platform.taken == []
    assert result_at - began < 30


def test_nothing_is_sent_after_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform()

    async def main() -> None:
        async with Progress(platform.post, with_preview=False) as progress:
            pass
        late = threading.Thread(target=progress.on_step, args=(step(3),))
        late.start()
        await asyncio.to_thread(late.join)
        await asyncio.sleep(0.05)

    asyncio.run(main())

    assert platform.begun == []


def test_a_cancelled_job_recalls_its_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform(seconds=60)

    async def main() -> None:
        async with Progress(platform.post, with_preview=False) as progress:
            await asyncio.to_thread(progress.on_step, step(1))
            await asyncio.sleep(0.05)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert len(platform.begun) == 1
    assert platform.taken == []


def test_an_update_that_fails_does_not_fail_the_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)

    async def refuse(_update: Mapping[str, Any]) -> None:
        raise ConnectionResetError("gone")

    async def main() -> None:
        async with Progress(refuse, with_preview=False) as progress:
            await asyncio.to_thread(progress.on_step, step(1))

    asyncio.run(main())

    assert json.loads(capsys.readouterr().out)["event"] == "progress not sent"


def test_a_preview_is_a_small_webp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    platform = Platform()

    run(platform, lambda progress: progress.on_step(step(4)), with_preview=True)

    (_, update), *_ = platform.taken
    data = base64.b64decode(update["preview"])
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (256, 128))
    assert len(data) < 10_000


def test_nothing_happens_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)

    async def main() -> None:
        async with Progress(None, with_preview=True) as progress:
            await asyncio.to_thread(progress.on_step, Step(1, 8, lambda: pytest.fail("a preview was made")))

    asyncio.run(main())
