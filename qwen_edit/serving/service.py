"""One service behind every door: the device thread, the load, admission, cancel, progress, rest and close.

One thread owns the device; decoding and encoding run beside it, as does all that waits for others. A door hands over a
request and says who asks.
"""

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.fitting import Delivery, Reply
from qwen_edit.edit.prepare import prepare
from qwen_edit.edit.respond import respond
from qwen_edit.editor import Editor, Fetch
from qwen_edit.errors import EditError, InternalError
from qwen_edit.log import log
from qwen_edit.serving.device_side import DeviceSide
from qwen_edit.serving.device_thread import LeftUndone, LostDevice, Patience
from qwen_edit.serving.failures import DeviceLostError, LeftError, OverloadedError
from qwen_edit.serving.progress import Listener, Silence
from qwen_edit.serving.saving import save
from qwen_edit.settings import Settings

T = TypeVar("T")

LOGGED = ("model_config", "seed", "width", "height", "timings", "warnings")
"""The parts of a reply that go into the log: neither pictures nor prompts."""

WORKERS, WAITERS = 4, 32
"""Threads that decode and encode, and threads that wait for others: downloads, uploads, folders."""

SAVING_S = 30.0
"""Seconds that an end waits for results that are being saved."""


SILENCE = Silence()


@dataclass(frozen=True)
class Caller:
    """Who asks: the job's id, the bytes that the reply may have (None is any number), and who hears of its progress.

    `waited_ms` is how long it waited at the door.
    """

    job_id: str
    limit: int | None = None
    progress: Listener = SILENCE
    waited_ms: float = 0.0


class Service:
    """Edits for every door of this process, with its one editor."""

    def __init__(
        self,
        settings: Settings,
        fetch: Fetch | None = None,
        places: int | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Make a service that has not begun to load.

        Args:
            fetch: see `Editor.load`.
            places: jobs held at once, beyond which `job` refuses; None where the door's platform sees to that.
            patience: how long the device may keep silent.
        """
        self.settings = settings
        self.device = DeviceSide(settings, fetch, patience)
        self._places = places
        self._work = ThreadPoolExecutor(WORKERS, thread_name_prefix="work")
        self._waits = ThreadPoolExecutor(WAITERS, thread_name_prefix="wait")
        self._saving: set[Future[None]] = set()
        self._held = 0

    def load(self) -> Future[Editor]:
        """Begin to load the editor, once, and return at once."""
        return self.device.load()

    async def warm_up(self) -> None:
        """Wait for the load, and warm the device up.

        Raises:
            EditError: the load failed, or memory does not suffice for an edit of the usual size, in tiles either.
        """
        await self.device.warm_up()

    def close(self) -> bool:
        """End in bounded time: results that are being saved first, then the load or the edit that is under way.

        Returns:
            Whether no thread is left that an ending process would wait for.
        """
        unsaved = wait(self._saving, SAVING_S).not_done
        for pool in (self._work, self._waits):
            pool.shutdown(wait=False, cancel_futures=True)
        return self.device.close() and not unsaved

    @property
    def held(self) -> int:
        """Jobs that have begun and not ended."""
        return self._held

    @property
    def is_full(self) -> bool:
        """Whether `job` would refuse one more."""
        return self._places is not None and self._held >= self._places

    @contextmanager
    def job(self, job_id: str) -> Iterator[None]:
        """All that a door does for one job: it holds a place, and whatever goes wrong is logged and told in a sentence.

        Raises:
            OverloadedError: every place is taken.
            EditError: for any failure; `DeviceLostError` where only a new process helps, `LeftError` where this job had
                no part in that.
        """
        if self.is_full:
            raise OverloadedError
        self._held += 1
        try:
            yield
        except EditError as refusal:
            _log_refusal(job_id, refusal)
            raise
        except LeftUndone as lost:
            raise LeftError("the worker lost its device before the edit was done; send it again") from lost
        # The edge: whatever it is, the caller gets a sentence and the log the rest. A library that exits would take the
        # process with it, and the job would be lost.
        except (Exception, SystemExit) as failure:
            log("failed", "error", job=job_id, traceback=traceback.format_exc())
            kind = DeviceLostError if isinstance(failure, LostDevice) else InternalError
            raise kind(f"the edit failed; the worker's log has the details under job {job_id}") from failure
        finally:
            self._held -= 1
            if not self._held:
                self.device.rest()

    async def edit(self, request: EditRequest, caller: Caller) -> Reply:
        """Edit as a request says, inside of `job`. Cancelled, it leaves the device at the next step.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        stopped = threading.Event()
        try:
            return await self._edit(request, caller, stopped)
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def _edit(self, request: EditRequest, caller: Caller, stopped: threading.Event) -> Reply:
        if self.settings.allow_download:
            await self.device.loaded()  # it may bring the checkpoint that the plan is about to look for
        decoding = self._waits if self.settings.allow_urls else self._work
        prepared = await _on(decoding, partial(prepare, request, self.settings))
        editor = await self.device.loaded()
        async with caller.progress:
            rendered, queue_ms = await self.device.render(editor, prepared, caller.progress.on_step)
            delivery = Delivery(caller.limit, editor.bucket, caller.job_id, stopped.is_set)
            encoding = self._work if editor.bucket is None else self._waits
            reply = await _on(encoding, partial(respond, prepared, rendered, caller.waited_ms + queue_ms, delivery))
        self._after(caller.job_id, prepared.plan.seed, reply)
        return reply

    def _after(self, job_id: str, seed: int, reply: Reply) -> None:
        """Save and log an edit beside its reply, which waits for neither."""

        def after() -> None:
            saved = save(self.settings.save_dir, job_id, seed, reply.encoded)
            told = reply.response.to_json()
            log("edited", job=job_id, saved=saved, reply={key: told[key] for key in LOGGED})

        saving = self._waits.submit(after)
        self._saving.add(saving)
        saving.add_done_callback(self._saving.discard)


def _log_refusal(job_id: str, refusal: EditError) -> None:
    log(
        "refused",
        "warning",
        job=job_id,
        code=refusal.code,
        fields=refusal.fields,
        error=refusal.logged,
        cause=refusal.cause,
    )


async def _on(pool: ThreadPoolExecutor, do: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, do)
