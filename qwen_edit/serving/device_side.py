"""The editor on the one thread that owns the device: its load, its warm-up, its edits, and the end of it."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

from qwen_edit.edit.hooks import Hooks, OnStep
from qwen_edit.edit.prepare import Prepared
from qwen_edit.edit.respond import Rendered
from qwen_edit.editor import Editor, Fetch
from qwen_edit.errors import Cancelled, EditError
from qwen_edit.log import log
from qwen_edit.machine.host_memory import release_free_memory
from qwen_edit.serving.device_thread import DeviceThread, LeftUndone, LostDevice, Patience
from qwen_edit.settings import Settings

T = TypeVar("T")


class DeviceSide:
    """What happens on the device thread.

    The thread that loads the editor is the one that later renders, so an early job waits its turn behind the load.
    """

    def __init__(self, settings: Settings, fetch: Fetch | None, patience: Patience | None) -> None:
        self._settings = settings
        self._fetch = fetch
        self._thread = DeviceThread(self._lost, patience)
        self._stopping = threading.Event()
        self._editor: Future[Editor] | None = None
        self._losses: list[Callable[[], object]] = []
        self._started = time.perf_counter()

    @property
    def is_lost(self) -> bool:
        """Whether the device has stopped answering."""
        return self._thread.is_lost

    def when_lost(self, hear: Callable[[], object]) -> None:
        """Call a function once the device is lost, on whatever thread notices it."""
        self._losses.append(hear)

    def load(self) -> Future[Editor]:
        """Begin to load the editor, once, and return at once."""
        if self._editor is None:
            self._editor = self._thread.submit(self._load)
        return self._editor

    async def loaded(self) -> Editor:
        """Wait for the load; see `Editor.load` for what is raised."""
        # Shielded: the job that waits may be cancelled, the load is everybody's.
        return await asyncio.shield(asyncio.wrap_future(self.load()))

    async def warm_up(self) -> None:
        """See `Editor.warm_up`."""
        editor = await self.loaded()
        await self._in_turn(partial(editor.warm_up, self._stopping.is_set))
        start = editor.start.model_dump() if editor.start else None
        log("warm", seconds=round(time.perf_counter() - self._started, 3), start=start)

    async def render(self, editor: Editor, prepared: Prepared, on_step: OnStep) -> tuple[Rendered, float]:
        """Render in turn; cancelled, it leaves the device at the next step.

        Returns:
            What was rendered, and the milliseconds that it waited for its turn.

        Raises:
            LostDevice: the device no longer answers, which this edit noticed, or (`LeftUndone`) another.
        """
        asked = time.perf_counter()
        cancelled = threading.Event()

        def is_cancelled() -> bool:
            self._thread.alive()  # it is asked between steps, and between the reads of another checkpoint
            return cancelled.is_set()

        def turn() -> tuple[Rendered, float]:
            queue_ms = (time.perf_counter() - asked) * 1000
            self._thread.begin()
            try:
                if cancelled.is_set():
                    raise Cancelled("the edit was cancelled")
                return self._checked(editor, lambda: editor.render(prepared, Hooks(on_step, is_cancelled))), queue_ms
            finally:
                self._thread.end()

        try:
            return await self._in_turn(turn)
        except asyncio.CancelledError:
            cancelled.set()
            self._thread.stopped()
            raise

    def rest(self) -> None:
        """Give memory back, behind what a cancelled job may still have on the device."""
        with suppress(RuntimeError):  # closed, or lost
            self._thread.submit(release_free_memory)

    def close(self) -> bool:
        """Stop at the next opportunity. Returns whether the thread has ended."""
        self._stopping.set()
        return self._thread.close()

    async def _in_turn(self, do: Callable[[], T]) -> T:
        """Do something on the device thread, unless the device is lost before it is done."""
        loop = asyncio.get_running_loop()
        lost = loop.create_future()

        def hear() -> None:
            loop.call_soon_threadsafe(_set, lost)

        self._losses.append(hear)
        try:
            work = asyncio.wrap_future(self._thread.submit(do))
            await asyncio.wait({work, lost}, return_when=asyncio.FIRST_COMPLETED)
        except RuntimeError as error:
            raise LeftUndone(str(error)) from error
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            self._losses.remove(hear)
        if work.done() and not work.cancelled():  # as the thread cancels what it does not begin any more
            return work.result()
        work.add_done_callback(_ignore)
        raise LeftUndone("the device does not answer")

    def _checked(self, editor: Editor, render: Callable[[], Rendered]) -> Rendered:
        """Ask after a failure that nobody foresaw whether the device outlived it."""
        try:
            return render()
        except EditError:
            raise
        except Exception as error:
            if editor.is_broken():
                raise LostDevice(f"{type(error).__name__}: {error}"[:200]) from error
            raise

    def _lost(self) -> None:
        for hear in tuple(self._losses):
            hear()

    def _load(self) -> Editor:
        started = time.perf_counter()
        try:
            editor = Editor.load(self._settings, self._fetch, self._stopping.is_set)
        except Cancelled:  # by `close`
            log("load stopped")
            raise
        except EditError as error:
            log("not loaded", "error", error=str(error), cause=error.cause, models=str(self._settings.models))
            raise
        start = editor.start.model_dump() if editor.start else None
        log("loaded", seconds=round(time.perf_counter() - started, 3), start=start, setup=editor.setup.log_fields())
        return editor


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _ignore(work: asyncio.Future[T]) -> None:
    """Hear of a failure that nobody waits for any more."""
    if not work.cancelled():
        work.exception()
