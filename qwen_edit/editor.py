"""The whole path of a request, in order. `Editor` is the only object that owns the device.

torch and the model libraries are imported by `Editor.load`, not with this module: a request is checked, and its picture
decoded, without waiting for them.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image

from qwen_edit.bucket import Bucket
from qwen_edit.catalog import BASE_REPOSITORY, RANK, Checkpoint
from qwen_edit.download import fetch_missing
from qwen_edit.errors import Cancelled, OutOfMemory
from qwen_edit.exchange import Prepared, Rendered, prepare, respond
from qwen_edit.manifest import Manifest
from qwen_edit.model_folder import base_weights, read_manifest, require_checkpoints
from qwen_edit.payload import Delivery
from qwen_edit.schema import EditRequest, EditResponse, ModelInfo, StartTimings
from qwen_edit.selection import Plan, available, supported_steps
from qwen_edit.settings import Settings
from qwen_edit.step import OnStep, Step
from qwen_edit.weights.disk import Prefetch

if TYPE_CHECKING:
    from qwen_edit.models.loader import Loader
    from qwen_edit.models.pipeline import EditPipeline

SAVED_MEMORY = (
    "the device was short of memory: the pictures were made one at a time and the VAE worked in tiles, "
    "so the same seed can give a slightly different picture elsewhere"
)


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
    def load(cls, settings: Settings | None = None, cancelled: Callable[[], bool] = never) -> "Editor":
        """Load the pipeline and the preferred checkpoint.

        Args:
            settings: from the environment where left out.
            cancelled: asked between the stages of the load.

        Raises:
            SettingsError: an environment variable cannot be read.
            ModelUnavailable: the weights are not there, are damaged, or do not run on this machine.
            OutOfMemory: they do not fit the device.
            Cancelled: the flag was set.
        """
        settings = settings or Settings.from_environ(os.environ)
        if settings.allow_download:
            fetch_missing(settings.models)
        checkpoint, *others = require_checkpoints(settings.models)
        manifest = read_manifest(settings.models)
        base, path = base_weights(settings.models), settings.models / checkpoint.path
        started = time.perf_counter()
        # The slow imports stand here, in the order of what they let begin: the disk is asked for the files before
        # torch is there, the files are read to the device before diffusers and transformers are.
        with Prefetch([*base, path]):
            from qwen_edit.models.device import out_of_memory
            from qwen_edit.models.loader import Loader

            _go_on(cancelled)
            loader = Loader.for_device(settings, base, checkpoint)
            too_large, compiled = "the model does not fit the device's memory", settings.compiled
            with (
                out_of_memory(too_large),
                loader.begin(base, checkpoint) as arriving,
                loader.importing(compiled=compiled),
            ):
                import qwen_edit.models.assembly  # noqa: F401 - the slowest import, while the above is under way

                imported = time.perf_counter()
                _go_on(cancelled)
                pipeline = loader.assemble(arriving, checkpoint, compiled=compiled)
        editor = cls(settings, loader, pipeline, manifest)
        editor.start = StartTimings(
            imports=_ms(imported - started),
            read=_ms(arriving.read_seconds),
            read_bytes=arriving.read_bytes,
            assemble=_ms(time.perf_counter() - imported),
            total=_ms(time.perf_counter() - started),
        )
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
            pictures, warnings = self._pictures(prepared, on_step, cancelled)
            start, self.start = self.start, None
            standing = (self.setup.choice.warning,) if self.setup.choice.warning else ()
            described = self._describe(prepared.plan)
            return Rendered(pictures, described, watch.milliseconds, start, (*standing, *warnings))

    def warm_up(self) -> None:
        """Render a grey picture in two steps, so that no job waits for what a device does only once.

        A GPU chooses its kernels by size, so there it is of the usual size; a CPU does not, and is slow.
        """
        with self._lock:
            started = time.perf_counter()
            checkpoint = self._loader.checkpoint or available(self.settings.models)[0]
            self._change_to(checkpoint)
            side = 1024 if self._pipeline.text_encoder.device.type == "cuda" else 256
            guided = checkpoint.true_cfg_scale > 1
            steps = Plan(
                checkpoint=checkpoint,
                steps=2,
                true_cfg_scale=checkpoint.true_cfg_scale,
                negative_prompt=" " if guided else None,
                seed=0,
                width=side,
                height=side,
                num_images=1,
            )
            self._pipeline.render(Image.new("RGB", (side, side), "grey"), "warm up", steps, ignore, never)
            self._count_warm_up(time.perf_counter() - started)

    def is_broken(self) -> bool:
        """Whether the device has stopped answering, which only a new process mends."""
        return not self._pipeline.answers()

    def _pictures(
        self, prepared: Prepared, on_step: OnStep, cancelled: Callable[[], bool]
    ) -> tuple[list[Image.Image], tuple[str, ...]]:
        """Render, and once more with less memory where it did not suffice."""
        picture, prompt, chosen = prepared.picture, prepared.request.prompt, prepared.plan
        try:
            return self._pipeline.render(picture, prompt, chosen, on_step, cancelled), ()
        except OutOfMemory:
            pass  # the retry begins outside, where the error no longer holds on to the tensors of its frames
        with self._pipeline.saving_memory():
            pictures = [
                self._pipeline.render(picture, prompt, one, on_step, cancelled)[0] for one in _one_at_a_time(chosen)
            ]
        return pictures, (SAVED_MEMORY,)

    def _change_to(self, checkpoint: Checkpoint) -> None:
        if checkpoint == self._loader.checkpoint:
            return
        from qwen_edit.models.device import out_of_memory

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
            base_model=BASE_REPOSITORY,
            checkpoint=chosen.checkpoint.file,
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


def _one_at_a_time(chosen: Plan) -> list[Plan]:
    """The same pictures, one each: the one at i is drawn from the seed plus i."""
    return [replace(chosen, num_images=1, seed=(chosen.seed + i) % 2**63) for i in range(chosen.num_images)]


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("the load was cancelled")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
