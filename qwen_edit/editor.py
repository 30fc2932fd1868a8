"""The whole path of a request, in order. `Editor` is the only object that owns the device.

torch and the model libraries are imported by `Editor.load`, not with this module: a request is checked, and its picture
decoded, without waiting for them.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse, ModelInfo, StartTimings
from qwen_edit.edit.bucket import Bucket
from qwen_edit.edit.fitting import Delivery
from qwen_edit.edit.hooks import OnStep, Step
from qwen_edit.edit.plan import Plan, supported_steps
from qwen_edit.edit.prepare import Prepared, prepare
from qwen_edit.edit.respond import Rendered, respond
from qwen_edit.errors import Cancelled, ModelUnavailable
from qwen_edit.loading.imports.collector import collector_paused
from qwen_edit.model.render import render
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, RANK, Checkpoint
from qwen_edit.store.folder import BaseWeights, available, base_weights, is_whole, read_manifest, require_checkpoints
from qwen_edit.store.manifest import Manifest
from qwen_edit.weights.disk import Prefetch

if TYPE_CHECKING:
    from qwen_edit.loading.loader import Arriving, Loader
    from qwen_edit.model.pipeline import EditPipeline

Fetch = Callable[[Path, Callable[[], bool]], None]
"""Makes a model directory whole, and asks now and then whether it should stop."""

_WARM_UP_STEPS = 2


def ignore(step: Step) -> None:
    """An `on_step` that does nothing."""


def never() -> bool:
    """A `cancelled` flag that is never set."""
    return False


class Editor:
    """Loads once, edits many times, one edit at a time."""

    def __init__(
        self, settings: Settings, loader: "Loader", pipeline: "EditPipeline", manifest: Manifest | None
    ) -> None:
        self.settings = settings
        self.bucket = Bucket(settings.bucket) if settings.bucket else None
        self.setup = loader.setup
        self._loader = loader
        self._pipeline = pipeline
        self._manifest = manifest
        self.start: StartTimings | None = None
        self._lock = Lock()

    @classmethod
    def load(
        cls,
        settings: Settings | None = None,
        fetch: Fetch | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> "Editor":
        """Load the pipeline and the preferred checkpoint.

        Args:
            settings: from the environment where left out.
            fetch: brings weights that are missing where the settings allow it, as `builder.missing.fetch_missing` does.
            cancelled: asked between the stages of the load, and before each block of a file is read.

        Raises:
            SettingsError: an environment variable cannot be read.
            ModelUnavailable: the weights are not there, are damaged, or do not run on this machine.
            OutOfMemory: they do not fit the device.
            Cancelled: the flag was set.
        """
        settings = settings or Settings.from_environ(os.environ)
        if settings.allow_download:
            _fetch(settings.models, fetch, cancelled)
        checkpoint, *others = require_checkpoints(settings.models)
        manifest = read_manifest(settings.models)
        with collector_paused():
            loader, pipeline, start = _assembled(settings, base_weights(settings.models), checkpoint, cancelled)
        editor = cls(settings, loader, pipeline, manifest)
        editor.start = start
        editor._warm_cache(others)
        return editor

    def edit(
        self,
        request: EditRequest,
        on_step: OnStep = ignore,
        cancelled: Callable[[], bool] = never,
    ) -> EditResponse:
        """Edit one picture.

        Args:
            on_step: called after each denoising step.
            cancelled: asked before each step.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        prepared = prepare(request, self.settings)
        rendered = self.render(prepared, on_step, cancelled)
        return respond(prepared, rendered, delivery=Delivery(bucket=self.bucket)).response

    def render(self, prepared: Prepared, on_step: OnStep = ignore, cancelled: Callable[[], bool] = never) -> Rendered:
        """The part of an edit that needs the device.

        Raises:
            EditError: see `qwen_edit.errors`.
        """
        with self._lock:
            watch = self._pipeline.start_stopwatch()
            with watch.stage("load"):
                self._change_to(prepared.plan.checkpoint)
            pictures, warnings = render(
                self._pipeline, prepared.picture, prepared.request.prompt, prepared.plan, on_step, cancelled
            )
            start, self.start = self.start, None
            standing = (self.setup.choice.warning,) if self.setup.choice.warning else ()
            described = self._describe(prepared.plan)
            return Rendered(pictures, described, watch.milliseconds, start, (*standing, *warnings))

    def warm_up(self, cancelled: Callable[[], bool] = never) -> None:
        """Begin to edit a grey picture, so that no job waits for what a device does only once.

        A GPU chooses its kernels by size, so there it is of the usual size; a CPU does not, and is slow. The schedule
        is the usual one, for what is computed once for a schedule, and of its steps the first two are done.

        Raises:
            EditError: as for `render`.
        """
        with self._lock:
            started = time.perf_counter()
            checkpoint = self._loader.checkpoint or available(self.settings.models)[0]
            self._change_to(checkpoint)
            side = 1024 if self._pipeline.text_encoder.device.type == "cuda" else 256
            grey = Image.new("RGB", (side, side), "grey")
            render(self._pipeline, grey, "warm up", _usual(checkpoint, side), self._stop_early, cancelled)
            self._count_warm_up(time.perf_counter() - started)

    def _stop_early(self, step: Step) -> None:
        if step.number >= _WARM_UP_STEPS:
            self._pipeline.skip_the_rest()

    def is_broken(self) -> bool:
        """Whether the device has stopped answering, which only a new process mends."""
        return not self._pipeline.answers()

    def _change_to(self, checkpoint: Checkpoint) -> None:
        if checkpoint == self._loader.checkpoint:
            return
        from qwen_edit.machine.device import out_of_memory

        with out_of_memory(f"the {checkpoint.name} checkpoint does not fit the device's memory"):
            self._loader.change(self._pipeline, checkpoint)

    def _count_warm_up(self, seconds: float) -> None:
        if self.start is not None:
            total = self.start.total + _ms(seconds)
            self.start = self.start.model_copy(update={"warm_up": _ms(seconds), "total": round(total, 1)})

    def _warm_cache(self, others: Sequence[Checkpoint]) -> None:
        """Ask for the checkpoints that are not on the device, so that a change to one does not wait for the disk."""
        Prefetch([self.settings.models / other.path for other in others], gently=True)

    def _describe(self, chosen: Plan) -> ModelInfo:
        on_disk = available(self.settings.models)
        entry = self._manifest.entry(chosen.checkpoint.path) if self._manifest else None
        return ModelInfo(
            base_model=_source_of_base(self._manifest) if self._manifest else None,
            checkpoint=chosen.checkpoint.file,
            repository=entry.repository if entry else None,
            revision=entry.revision if entry else None,
            sha256=entry.sha256 if entry else None,
            rank=chosen.checkpoint.rank,
            steps=chosen.steps,
            true_cfg_scale=chosen.true_cfg_scale,
            supported_ranks=[RANK],
            supported_steps=supported_steps(on_disk),
            default_rank=RANK,
            default_steps=on_disk[0].default_steps if on_disk else chosen.checkpoint.default_steps,
            **self._pipeline.describe(),
        )


def _fetch(models: Path, fetch: Fetch | None, cancelled: Callable[[], bool]) -> None:
    if fetch is not None:
        fetch(models, cancelled)
    elif not is_whole(models):
        raise ModelUnavailable(
            "weights are missing in MODEL_CACHE_DIR, and QWEN_EDIT_ALLOW_DOWNLOAD is 1, but this program was given "
            "nothing that fetches them; fetch them with python -m builder bake"
        )


def _assembled(
    settings: Settings, base: BaseWeights, checkpoint: Checkpoint, cancelled: Callable[[], bool]
) -> "tuple[Loader, EditPipeline, StartTimings]":
    """Load a checkpoint with the base model; see `Editor.load` for what is raised.

    The slow imports stand here, in the order of what they let begin: the disk is asked for the files before torch is
    there, the files are read to the device before diffusers and transformers are.
    """
    started = time.perf_counter()
    with Prefetch([*base, settings.models / checkpoint.path]):
        from qwen_edit.loading.loader import Loader
        from qwen_edit.machine.device import out_of_memory

        _go_on(cancelled)
        loader = Loader.for_device(settings, base, checkpoint)
        with (
            out_of_memory("the model does not fit the device's memory"),
            loader.begin(base, checkpoint, cancelled) as arriving,
            loader.importing(compiled=settings.compiled),
        ):
            import qwen_edit.loading.assembly  # noqa: F401 - the slowest import, while the above is under way

            imported = time.perf_counter()
            _go_on(cancelled)
            pipeline = loader.assemble(arriving, checkpoint, compiled=settings.compiled)
    return loader, pipeline, _start_timings(started, imported, arriving)


def _start_timings(started: float, imported: float, arriving: "Arriving") -> StartTimings:
    """Of a start that has just ended, from when it began and when its imports ended (`time.perf_counter`)."""
    ended = time.perf_counter()
    return StartTimings(
        imports=_ms(imported - started),
        read=_ms(arriving.read_seconds),
        read_bytes=arriving.read_bytes,
        assemble=_ms(ended - imported),
        total=_ms(ended - started),
    )


def _usual(checkpoint: Checkpoint, side: int) -> Plan:
    """What runs where a request asks for nothing in particular, for a square."""
    return Plan(
        checkpoint=checkpoint,
        steps=checkpoint.default_steps,
        true_cfg_scale=checkpoint.true_cfg_scale,
        negative_prompt=" " if checkpoint.true_cfg_scale > 1 else None,
        seed=0,
        width=side,
        height=side,
        num_images=1,
    )


def _source_of_base(manifest: Manifest) -> str | None:
    """The repository of all the base model's files, or None where they are of none or of several."""
    found = {entry.repository for entry in manifest.files if entry.path.startswith(f"{BASE_FOLDER}/")}
    return found.pop() if len(found) == 1 else None


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the load was cancelled")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
