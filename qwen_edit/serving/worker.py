"""RunPod's queue: jobs in, JSON out. One thread owns the device; decoding and encoding run beside it."""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from qwen_edit.contract.request import EditRequest
from qwen_edit.edit.fitting import Delivery, Encoded, limit_for, safe_name
from qwen_edit.edit.hooks import OnStep
from qwen_edit.edit.prepare import Prepared, prepare
from qwen_edit.edit.respond import Rendered, respond
from qwen_edit.editor import Editor, Fetch
from qwen_edit.errors import Cancelled, EditError, InternalError, SettingsError
from qwen_edit.log import log
from qwen_edit.machine.host_memory import release_free_memory
from qwen_edit.pictures import read
from qwen_edit.serving import fitness, runpod_sdk
from qwen_edit.serving.progress import Progress
from qwen_edit.settings import Settings

LOGGED = ("model_config", "seed", "width", "height", "timings", "warnings")
"""The parts of a reply that go into the log: neither pictures nor prompts."""


class DeviceLostError(Exception):
    """An edit failed and the device no longer answers: only a new process mends that."""


class Worker:
    """Answers jobs, and holds the one editor of this process.

    The thread that loads the editor is the one that later renders, so an early job waits its turn behind the load.
    """

    def __init__(self, settings: Settings, fetch: Fetch | None = None) -> None:
        """Make a worker that has not begun to load.

        Args:
            fetch: see `Editor.load`.
        """
        self.settings = settings
        self._fetch = fetch
        self._gpu = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gpu")
        self._stopping = threading.Event()
        self._editor: Future[Editor] | None = None
        self._held = 0
        self._started = time.perf_counter()

    @classmethod
    def from_environ(cls, fetch: Fetch | None = None) -> "Worker":
        """The worker of a program: with the environment's settings, or its end with a sentence about one of them."""
        read.ignore_pillows_warnings()
        try:
            return cls(Settings.from_environ(os.environ), fetch)
        except SettingsError as error:
            sys.exit(f"qwen-edit: {error}")

    def load(self) -> Future[Editor]:
        """Begin to load the editor, once, and return at once."""
        if self._editor is None:
            self._editor = self._gpu.submit(self._load)
        return self._editor

    def run(self) -> None:
        """Serve jobs through RunPod's SDK until it ends. Its import and the load overlap."""
        # At its default, DEBUG, the SDK logs every picture as base64, twice.
        os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")
        fitness_checks = [*fitness.checks(self.settings), self.editor_is_ready]
        try:
            runpod_sdk.start(self.handle, self.settings.concurrency, fitness_checks)
        finally:
            self.close()

    async def editor_is_ready(self) -> None:
        """Wait for the load, and warm the device up: the last check before the platform's first job is taken.

        Raises:
            UnfitError: the load failed, or memory does not suffice for an edit of the usual size, in tiles either.
        """
        try:
            editor = await self._loaded()
            await asyncio.get_running_loop().run_in_executor(self._gpu, editor.warm_up, self._stopping.is_set)
        except EditError as error:
            raise fitness.UnfitError(error.sentence) from error
        start = editor.start.model_dump() if editor.start else None
        log("warm", seconds=round(time.perf_counter() - self._started, 3), start=start)

    def close(self) -> None:
        """Stop loading at the next opportunity and let the thread go."""
        self._stopping.set()
        self._gpu.shutdown(wait=True, cancel_futures=True)

    async def handle(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one job: the response of the contract, or `{"error": "<code>: <sentence>"}`."""
        job_id = str(job.get("id", "unknown"))
        self._held += 1
        try:
            return await self._answer(job_id, job.get("input"))
        except EditError as refusal:
            log("refused", "warning", job=job_id, error=str(refusal), cause=_cause(refusal))
            return {"error": str(refusal)}
        # The worker's edge: whatever it is, the caller gets a sentence and the log the rest. A library that exits would
        # take the worker with it, and the job would be lost.
        except (Exception, SystemExit) as failure:
            log("failed", "error", job=job_id, traceback=traceback.format_exc())
            error = InternalError(f"the edit failed; the worker's log has the details under job {job_id}")
            renewal = {"refresh_worker": True} if isinstance(failure, DeviceLostError) else {}
            return {"error": str(error), **renewal}
        finally:
            self._held -= 1
            self._rest()

    async def _answer(self, job_id: str, payload: object) -> dict[str, Any]:
        request = EditRequest.parse(payload)
        if self.settings.allow_download:
            await self._loaded()  # it may bring the checkpoint that the plan is about to look for
        prepared = await asyncio.to_thread(prepare, request, self.settings)
        asked = time.perf_counter()
        editor = await self._loaded()
        async with self._progress(job_id, request) as progress:
            rendered, queue_ms = await self._render(editor, prepared, asked, progress.on_step)
            delivery = Delivery(limit_for(job_id, self.settings), editor.bucket, job_id)
            fitted = await asyncio.to_thread(respond, prepared, rendered, queue_ms, delivery)
        reply = fitted.response.to_json()
        try:
            saved = await asyncio.to_thread(self._save, job_id, prepared.plan.seed, fitted.encoded)
        except OSError as error:  # the edit is done and is not lost for that
            saved = []
            log("not saved", "error", job=job_id, error=f"{type(error).__name__}: {error}")
        log("edited", job=job_id, saved=saved, reply={key: reply[key] for key in LOGGED})
        return reply

    def _rest(self) -> None:
        """Give memory back where no job is left, behind what a cancelled one may still have on the device."""
        if not self._held:
            with suppress(RuntimeError):  # the worker is closed
                self._gpu.submit(release_free_memory)

    async def _loaded(self) -> Editor:
        # Shielded: the job that waits may be cancelled, the load is everybody's.
        return await asyncio.shield(asyncio.wrap_future(self.load()))

    def _progress(self, job_id: str, request: EditRequest) -> Progress:
        post = partial(runpod_sdk.post_progress, job_id) if self.settings.on_platform else None
        return Progress(post, with_preview=request.preview)

    async def _render(
        self, editor: Editor, prepared: Prepared, asked: float, on_step: OnStep
    ) -> tuple[Rendered, float]:
        """Render on the GPU thread; a cancelled job leaves it at the next step.

        Returns:
            What was rendered, and the milliseconds from `asked` (on the clock of `time.perf_counter`) to its turn.
        """
        cancelled = threading.Event()

        def turn() -> tuple[Rendered, float]:
            queue_ms = (time.perf_counter() - asked) * 1000
            with _device_checked(editor):
                return editor.render(prepared, on_step, cancelled.is_set), queue_ms

        try:
            return await asyncio.get_running_loop().run_in_executor(self._gpu, turn)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def _load(self) -> Editor:
        started = time.perf_counter()
        try:
            editor = Editor.load(self.settings, self._fetch, self._stopping.is_set)
        except Cancelled:  # by `close`
            log("load stopped")
            raise
        except EditError as error:
            log("not loaded", "error", error=str(error), cause=_cause(error), models=str(self.settings.models))
            raise
        start = editor.start.model_dump() if editor.start else None
        log("loaded", seconds=round(time.perf_counter() - started, 3), start=start, setup=editor.setup.log_fields())
        return editor

    def _save(self, job_id: str, seed: int, encoded: Encoded) -> list[str]:
        if self.settings.save_dir is None:
            return []
        self.settings.save_dir.mkdir(parents=True, exist_ok=True)
        paths = [
            self.settings.save_dir / f"{safe_name(job_id)}-{seed}-{number}.{encoded.format}"
            for number in range(len(encoded.files))
        ]
        for path, data in zip(paths, encoded.files, strict=True):
            path.write_bytes(data)
        return [str(path) for path in paths]


def _cause(refusal: EditError) -> str | None:
    """What a library said that led to the refusal: for the log alone, and not at any length."""
    cause = refusal.__cause__
    return f"{type(cause).__name__}: {cause}"[:200] if cause else None


@contextmanager
def _device_checked(editor: Editor) -> Iterator[None]:
    """Ask after a failure that nobody foresaw, on the thread that owns the device, whether the device outlived it.

    Raises:
        DeviceLostError: it did not.
    """
    try:
        yield
    except EditError:
        raise
    except Exception as error:
        if editor.is_broken():
            raise DeviceLostError from error
        raise
