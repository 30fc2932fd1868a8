"""One service behind every door: the device thread, the load, admission, cancel, progress, rest and close.

One thread owns the device; decoding and encoding run beside it. A door hands over a request and says who asks.
"""

import asyncio
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.fitting import Delivery, Reply
from qwen_edit.edit.hooks import Hooks
from qwen_edit.edit.prepare import Prepared, prepare
from qwen_edit.edit.respond import Rendered, respond
from qwen_edit.editor import Editor, Fetch
from qwen_edit.errors import Cancelled, EditError, InternalError
from qwen_edit.log import log
from qwen_edit.machine.host_memory import release_free_memory
from qwen_edit.serving.progress import Post, Progress
from qwen_edit.serving.saving import save
from qwen_edit.settings import Settings

LOGGED = ("model_config", "seed", "width", "height", "timings", "warnings")
"""The parts of a reply that go into the log: neither pictures nor prompts."""


class DeviceLostError(InternalError):
    """An edit failed and the device no longer answers: only a new process mends that."""


class OverloadedError(Exception):
    """Every place that the door asked for is taken."""


@dataclass(frozen=True)
class Caller:
    """Who asks: the job's id, the bytes that the reply may have (None is any number), and who hears of its progress."""

    job_id: str
    limit: int | None = None
    post: Post | None = None


class Service:
    """Edits for every door of this process, with its one editor.

    The thread that loads the editor is the one that later renders, so an early job waits its turn behind the load.
    """

    def __init__(self, settings: Settings, fetch: Fetch | None = None, places: int | None = None) -> None:
        """Make a service that has not begun to load.

        Args:
            fetch: see `Editor.load`.
            places: jobs held at once, beyond which `job` refuses; None where the door's platform sees to that.
        """
        self.settings = settings
        self._fetch = fetch
        self._places = places
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._stopping = threading.Event()
        self._editor: Future[Editor] | None = None
        self._held = 0
        self._started = time.perf_counter()

    def load(self) -> Future[Editor]:
        """Begin to load the editor, once, and return at once."""
        if self._editor is None:
            self._editor = self._device.submit(self._load)
        return self._editor

    async def warm_up(self) -> None:
        """Wait for the load, and warm the device up.

        Raises:
            EditError: the load failed, or memory does not suffice for an edit of the usual size, in tiles either.
        """
        editor = await self._loaded()
        await asyncio.get_running_loop().run_in_executor(self._device, editor.warm_up, self._stopping.is_set)
        start = editor.start.model_dump() if editor.start else None
        log("warm", seconds=round(time.perf_counter() - self._started, 3), start=start)

    def close(self) -> None:
        """Stop loading at the next opportunity and let the thread go."""
        self._stopping.set()
        self._device.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """All that a door does for one job: it holds a place, and whatever goes wrong is logged and told in a sentence.

        Raises:
            OverloadedError: every place is taken.
            EditError: for any failure; `DeviceLostError` where only a new process helps.
        """
        if self._places is not None and self._held >= self._places:
            raise OverloadedError
        self._held += 1
        try:
            yield
        except EditError as refusal:
            log("refused", "warning", job=job_id, error=str(refusal), cause=refusal.cause)
            raise
        # The edge: whatever it is, the caller gets a sentence and the log the rest. A library that exits would take the
        # process with it, and the job would be lost.
        except (Exception, SystemExit) as failure:
            log("failed", "error", job=job_id, traceback=traceback.format_exc())
            kind = DeviceLostError if isinstance(failure, _DeviceLost) else InternalError
            raise kind(f"the edit failed; the worker's log has the details under job {job_id}") from failure
        finally:
            self._held -= 1
            self._rest()

    async def edit(self, request: EditRequest, caller: Caller) -> Reply:
        """Edit as a request says, inside of `job`. Cancelled, it leaves the device at the next step.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        if self.settings.allow_download:
            await self._loaded()  # it may bring the checkpoint that the plan is about to look for
        prepared = await asyncio.to_thread(prepare, request, self.settings)
        asked = time.perf_counter()
        editor = await self._loaded()
        async with Progress(caller.post, with_preview=request.preview) as progress:
            rendered, queue_ms = await self._render(editor, prepared, asked, progress)
            delivery = Delivery(caller.limit, editor.bucket, caller.job_id)
            reply = await asyncio.to_thread(respond, prepared, rendered, queue_ms, delivery)
        saved = await asyncio.to_thread(save, self.settings.save_dir, caller.job_id, prepared.plan.seed, reply.encoded)
        told = reply.response.to_json()
        log("edited", job=caller.job_id, saved=saved, reply={key: told[key] for key in LOGGED})
        return reply

    async def _loaded(self) -> Editor:
        # Shielded: the job that waits may be cancelled, the load is everybody's.
        return await asyncio.shield(asyncio.wrap_future(self.load()))

    async def _render(
        self, editor: Editor, prepared: Prepared, asked: float, progress: Progress
    ) -> tuple[Rendered, float]:
        """Render on the device thread.

        Returns:
            What was rendered, and the milliseconds from `asked` (on the clock of `time.perf_counter`) to its turn.
        """
        cancelled = threading.Event()
        hooks = Hooks(progress.on_step, cancelled.is_set)

        def turn() -> tuple[Rendered, float]:
            queue_ms = (time.perf_counter() - asked) * 1000
            with _device_checked(editor):
                return editor.render(prepared, hooks), queue_ms

        try:
            return await asyncio.get_running_loop().run_in_executor(self._device, turn)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def _rest(self) -> None:
        """Give memory back where no job is left, behind what a cancelled one may still have on the device."""
        if not self._held:
            with suppress(RuntimeError):  # the service is closed
                self._device.submit(release_free_memory)

    def _load(self) -> Editor:
        started = time.perf_counter()
        try:
            editor = Editor.load(self.settings, self._fetch, self._stopping.is_set)
        except Cancelled:  # by `close`
            log("load stopped")
            raise
        except EditError as error:
            log("not loaded", "error", error=str(error), cause=error.cause, models=str(self.settings.models))
            raise
        start = editor.start.model_dump() if editor.start else None
        log("loaded", seconds=round(time.perf_counter() - started, 3), start=start, setup=editor.setup.log_fields())
        return editor


class _DeviceLost(Exception):
    """What `_device_checked` raises on the device thread."""


@contextmanager
def _device_checked(editor: Editor) -> Iterator[None]:
    """Ask after a failure that nobody foresaw, on the thread that owns the device, whether the device outlived it."""
    try:
        yield
    except EditError:
        raise
    except Exception as error:
        if editor.is_broken():
            raise _DeviceLost from error
        raise
