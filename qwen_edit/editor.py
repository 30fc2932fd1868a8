"""The whole path of a request, in order. `Editor` is the only object that owns the device.

torch and the model libraries are imported by `Editor.load`, not with this module: a request is checked, and its picture
decoded, without waiting for them.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse, StartTimings
from qwen_edit.edit.bucket import Bucket
from qwen_edit.edit.fitting import Delivery
from qwen_edit.edit.hooks import NO_HOOKS, Hooks, never
from qwen_edit.edit.plan import usual_plan
from qwen_edit.edit.prepare import Prepared, prepare
from qwen_edit.edit.respond import Rendered, respond
from qwen_edit.errors import ModelUnavailable
from qwen_edit.loading import start
from qwen_edit.loading.imports.collector import collector_paused
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.store.folder import available, is_whole, read_manifest, require_checkpoints
from qwen_edit.store.manifest import Manifest
from qwen_edit.weights.disk import Prefetch

if TYPE_CHECKING:
    from qwen_edit.loading.loader import Loader
    from qwen_edit.model.pipeline import EditPipeline

Fetch = Callable[[Path, Callable[[], bool]], None]
"""Makes a model directory whole, and asks now and then whether it should stop."""

_WARM_UP_STEPS = 2


class Editor:
    """Loads once, edits many times, one edit at a time."""

    def __init__(
        self, settings: Settings, loader: "Loader", pipeline: "EditPipeline", manifest: Manifest | None
    ) -> None:
        self.settings = settings
        self.bucket = Bucket(settings.bucket) if settings.bucket else None
        self.setup = loader.setup
        self.pipeline = pipeline
        self.start: StartTimings | None = None
        self._loader = loader
        self._manifest = manifest
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        settings: Settings | None = None,
        fetch: Fetch | None = None,
        is_cancelled: Callable[[], bool] = never,
    ) -> "Editor":
        """Load the pipeline and the preferred checkpoint.

        Args:
            settings: from the environment where left out.
            fetch: brings weights that are missing where the settings allow it, as `builder.missing.fetch_missing` does.
            is_cancelled: asked between the stages of the load, and before each read of a file.

        Raises:
            SettingsError: an environment variable cannot be read.
            ModelUnavailable: the weights are not there, are damaged, or do not run on this machine.
            OutOfMemory: they do not fit the device.
            Cancelled: the flag was set.
        """
        settings = settings or Settings.from_environ(os.environ)
        if settings.allow_download:
            _fetch(settings.models, fetch, is_cancelled)
        checkpoint, *others = require_checkpoints(settings.models)
        manifest = read_manifest(settings.models)
        with collector_paused():
            loader, pipeline, timings = start.load(settings, checkpoint, is_cancelled)
        editor = cls(settings, loader, pipeline, manifest)
        editor.start = timings
        # So that a change to another checkpoint does not wait for the disk.
        Prefetch([settings.models / other.path for other in others], gently=True)
        return editor

    def edit(self, request: EditRequest, hooks: Hooks = NO_HOOKS) -> EditResponse:
        """Edit one picture.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        prepared = prepare(request, self.settings)
        rendered = self.render(prepared, hooks)
        return respond(prepared, rendered, delivery=Delivery(bucket=self.bucket)).response

    def render(self, prepared: Prepared, hooks: Hooks = NO_HOOKS) -> Rendered:
        """The part of an edit that needs the device.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        from qwen_edit.model.render import render

        plan = prepared.plan
        with self._lock:
            watch = self.pipeline.start_stopwatch()
            with watch.stage("load"):
                self.change_to(plan.checkpoint, hooks.is_cancelled)
            pictures, warnings = render(self.pipeline, prepared.picture, prepared.request.prompt, plan, hooks)
            timings, self.start = self.start, None
            standing = (self.setup.choice.warning,) if self.setup.choice.warning else ()
            made = self.pipeline.describe()
            return Rendered(pictures, made, self._manifest, watch.milliseconds, timings, (*standing, *warnings))

    def warm_up(self, is_cancelled: Callable[[], bool] = never) -> None:
        """Begin to edit a grey picture, so that no job waits for what a device does only once.

        A GPU chooses its kernels by size, so there it is of the usual size; a CPU does not, and is slow. The schedule
        is the usual one, for what is computed once for a schedule, and of its steps the first two are done.

        Raises:
            EditError: as for `render`.
        """
        from qwen_edit.model.render import render

        with self._lock:
            began = time.perf_counter()
            checkpoint = self._loader.checkpoint or available(self.settings.models)[0]
            self.change_to(checkpoint, is_cancelled)
            side = 1024 if self.pipeline.device.type == "cuda" else 256
            grey = Image.new("RGB", (side, side), "grey")
            hooks = Hooks(is_cancelled=is_cancelled)
            render(self.pipeline, grey, "warm up", usual_plan(checkpoint, side), hooks, first=_WARM_UP_STEPS)
            if self.start is not None:
                self.start = self.start.warmed_up(time.perf_counter() - began)

    def change_to(self, checkpoint: Checkpoint, is_cancelled: Callable[[], bool] = never) -> None:
        """Have a checkpoint in the pipeline, whichever is there. For the thread that renders.

        Args:
            is_cancelled: asked before each read of the file.

        Raises:
            Cancelled: the flag was set.
            ModelUnavailable: its file is missing or damaged.
            OutOfMemory: it does not fit the device.
        """
        if checkpoint == self._loader.checkpoint:
            return
        from qwen_edit.machine.device import out_of_memory

        with out_of_memory(f"the {checkpoint.name} checkpoint does not fit the device's memory"):
            self._loader.change(self.pipeline, checkpoint, is_cancelled)

    def gpu_bytes(self) -> dict[str, int]:
        """See `machine.device.memory_bytes`."""
        from qwen_edit.machine.device import memory_bytes

        return memory_bytes(self.pipeline.device)

    def is_broken(self) -> bool:
        """Whether the device has stopped answering, which only a new process mends."""
        return not self.pipeline.answers()


def _fetch(models: Path, fetch: Fetch | None, is_cancelled: Callable[[], bool]) -> None:
    if fetch is not None:
        fetch(models, is_cancelled)
    elif not is_whole(models):
        raise ModelUnavailable(
            "weights are missing in MODEL_CACHE_DIR, and QWEN_EDIT_ALLOW_DOWNLOAD is 1, but this program was given "
            "nothing that fetches them; fetch them with python -m builder bake"
        )
