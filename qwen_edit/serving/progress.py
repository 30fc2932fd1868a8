"""Progress of a job, told to the platform while it runs: seldom, and never after the result."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, Self

from qwen_edit.edit.hooks import Step
from qwen_edit.log import log
from qwen_edit.pictures import write

INTERVAL = 0.5
"""Seconds between two updates: at most two a second."""

PATIENCE = 2.0
"""Seconds that a result waits for an update that the platform is slow to take."""

PREVIEW_QUALITY = 60
"""Of the WebP of a preview, about 5 kB."""

Post = Callable[[Mapping[str, Any]], Awaitable[None]]


class Listener(Protocol):
    """Hears of the steps of one job: entered on the event loop before the first, and left after the last."""

    def on_step(self, step: Step) -> None:
        """Take a finished step, on the thread that renders."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(self, *_: object) -> None: ...


class Silence:
    """A listener that does not listen."""

    def on_step(self, step: Step) -> None:
        """See `Listener`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Progress:
    """Reports the steps of one job.

    The platform takes updates and the result at the same address, in any order. So an update is on its way alone, the
    last step has none, and leaving the context waits for the one that is out, before the result may be posted.
    """

    def __init__(self, post: Post | None, with_preview: bool) -> None:
        """Begin; called on the event loop that posts.

        Args:
            post: sends one update to the platform, or None where nobody listens.
            with_preview: whether an update carries a small picture.
        """
        self._post = post
        self._with_preview = with_preview
        self._loop = asyncio.get_running_loop()
        self._sending: asyncio.Task[None] | None = None
        self._due = time.monotonic() + INTERVAL

    def on_step(self, step: Step) -> None:
        """Take a finished step, on the thread that renders."""
        if self._post is None or step.number == step.steps or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + INTERVAL
        self._loop.call_soon_threadsafe(self._send, update_of(step, with_preview=self._with_preview))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object = None, *_: object) -> None:
        """Send nothing more, and wait for the update that is on its way, or recall it after an error."""
        self._due = float("inf")
        await asyncio.sleep(0)  # an update that was handed over before this moment has begun now
        self._post = None
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=PATIENCE if kind is None else 0)
            self._sending.cancel()

    def _send(self, update: Mapping[str, Any]) -> None:
        if self._post is not None and (self._sending is None or self._sending.done()):
            self._sending = asyncio.ensure_future(self._post(update))
            self._sending.add_done_callback(_log_failure)


def update_of(step: Step, *, with_preview: bool) -> dict[str, Any]:
    """What is told of a finished step, on the thread that renders."""
    update: dict[str, Any] = {
        "step": step.number,
        "steps": step.steps,
        "percent": round(100 * step.number / step.steps),
    }
    return update | (_preview(step) if with_preview else {})


def _preview(step: Step) -> dict[str, str]:
    try:
        picture = step.preview()
    except RuntimeError as error:  # latents that no map fits, say: the edit goes on without
        log("no preview", "warning", error=f"{type(error).__name__}: {error}")
        return {}
    return {"preview": base64.b64encode(write.encode(picture, "webp", PREVIEW_QUALITY)).decode("ascii")}


def _log_failure(sending: asyncio.Future[None]) -> None:
    if not sending.cancelled() and (error := sending.exception()) is not None:
        log("progress not sent", "warning", error=f"{type(error).__name__}: {error}")
