"""The whole path of a request, in order. `Editor` is the only object that owns the device.

torch and the model libraries are imported by `Editor.load`, not with this module: a request is checked, and its picture
decoded, without waiting for them.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import Image

from qwen_edit import images
from qwen_edit.bucket import Bucket
from qwen_edit.catalog import BASE_FOLDER, BASE_REPOSITORY, RANK, Checkpoint
from qwen_edit.disk import Prefetch
from qwen_edit.download import fetch_missing
from qwen_edit.errors import Cancelled, ModelUnavailable, OutOfMemory
from qwen_edit.manifest import Manifest, ManifestError
from qwen_edit.payload import UNLIMITED, Delivery, Encoded, Reply, fit, require_bucket
from qwen_edit.schema import EditRequest, EditResponse, ModelInfo, StartTimings, Timings
from qwen_edit.selection import Plan, available, plan, supported_steps
from qwen_edit.settings import Settings
from qwen_edit.shards import shards
from qwen_edit.step import OnStep, Step

if TYPE_CHECKING:
    from qwen_edit.models.pipeline import EditPipeline
    from qwen_edit.weights import Weights

BASE_FILES = (
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "processor/preprocessor_config.json",
    "text_encoder/config.json",
    "vae/config.json",
)
"""What is read of the base model beside its weights."""

SAVED_MEMORY = (
    "the device was short of memory: the pictures were made one at a time and the VAE worked in tiles, "
    "so the same seed can give a slightly different picture elsewhere"
)


def ignore(step: Step) -> None:
    """An `on_step` that does nothing."""


def never() -> bool:
    """A `cancelled` flag that is never set."""
    return False


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for the device: its picture decoded, everything it left open decided."""

    request: EditRequest
    picture: Image.Image
    plan: Plan
    warnings: tuple[str, ...]
    decode_ms: float


@dataclass(frozen=True)
class Rendered:
    """What came off the device."""

    pictures: list[Image.Image]
    model: ModelInfo
    stages_ms: dict[str, float]
    start: StartTimings | None
    warnings: tuple[str, ...] = ()


def prepare(request: EditRequest, settings: Settings) -> Prepared:
    """Read the picture and decide what will run. Needs no model; any thread may call it.

    Raises:
        EditError: the picture cannot be used, no checkpoint is there for the request, or no bucket for a URL.
    """
    started = time.perf_counter()
    require_bucket(request, settings.bucket)
    decoded = _read_picture(request.image, settings)
    chosen = plan(request, decoded.picture.size, available(settings.models))
    return Prepared(request, decoded.picture, chosen, (*decoded.warnings, *chosen.warnings), _ms_since(started))


def _read_picture(image: str, settings: Settings) -> images.Decoded:
    if not (settings.allow_urls and images.is_url(image)):
        return images.decode(image)
    from qwen_edit.fetch import fetch  # its HTTP client is for those alone who allow URLs

    return images.read(fetch(image))


def respond(prepared: Prepared, rendered: Rendered, queue_ms: float = 0.0, delivery: Delivery = UNLIMITED) -> Reply:
    """Encode the pictures so that the reply fits, and say what made them. Needs no model; any thread may call it.

    Args:
        queue_ms: milliseconds that the request waited for the device.
        delivery: how the reply travels.

    Raises:
        EditError: the reply cannot be made to fit, or the bucket did not take the pictures.
    """
    started = time.perf_counter()

    def compose(encoded: Encoded) -> EditResponse:
        inline = [] if encoded.urls else [images.to_base64(file) for file in encoded.files]
        stages = {"queue": queue_ms, "decode": prepared.decode_ms, **rendered.stages_ms, "encode": _ms_since(started)}
        return _response(prepared, rendered, encoded, inline, stages)

    return fit(rendered.pictures, prepared.request, delivery, compose)


def _response(
    prepared: Prepared, rendered: Rendered, encoded: Encoded, inline: list[str], stages_ms: dict[str, float]
) -> EditResponse:
    timings = {name: round(ms, 1) for name, ms in (*stages_ms.items(), ("total", sum(stages_ms.values())))}
    return EditResponse(
        image=inline[0] if inline else None,
        images=inline or None,
        url=encoded.urls[0] if encoded.urls else None,
        urls=list(encoded.urls) or None,
        format=encoded.format,
        width=prepared.plan.width,
        height=prepared.plan.height,
        seed=prepared.plan.seed,
        model_info=rendered.model,
        timings=Timings(**timings, cold=rendered.start is not None, start=rendered.start),
        warnings=[*prepared.warnings, *rendered.warnings, *encoded.warnings],
    )


class Editor:
    """Loads once, edits many times, one edit at a time."""

    def __init__(self, settings: Settings, pipeline: "EditPipeline", manifest: Manifest | None) -> None:
        self.settings = settings
        self.bucket = Bucket(settings.bucket) if settings.bucket else None
        self._pipeline = pipeline
        self._manifest = manifest
        self._checkpoint: Checkpoint | None = None
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
            Cancelled: the flag was set.
        """
        settings = settings or Settings.from_environ(os.environ)
        if settings.allow_download:
            fetch_missing(settings.models)
        checkpoint, *others = require_checkpoints(settings.models)
        _require_base(settings.models)
        manifest = _read_manifest(settings.models)
        base, path = settings.models / BASE_FOLDER, settings.models / checkpoint.path
        files = [*shards(base / "text_encoder"), *shards(base / "vae"), path]
        started = time.perf_counter()
        # The slow imports stand here, in the order of what they let begin: the disk is asked for the files before
        # torch is there, the files are read to the device before diffusers and transformers are.
        with Prefetch(files):
            from qwen_edit.models.device import choose_device
            from qwen_edit.weights import Weights

            _go_on(cancelled)
            with Weights(files, choose_device(settings)) as weights:
                from qwen_edit.models.pipeline import EditPipeline

                imported = time.perf_counter()
                _go_on(cancelled)
                editor = cls(settings, EditPipeline.load(base, weights), manifest)
                _go_on(cancelled)
                editor._use(checkpoint, weights)
        editor.start = StartTimings(
            imports=_ms(imported - started),
            read=_ms(weights.stats.seconds),
            read_bytes=weights.stats.bytes,
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
            self._change_to(prepared.plan.checkpoint)
            watch = self._pipeline.start_stopwatch()
            pictures, warnings = self._pictures(prepared, on_step, cancelled)
            start, self.start = self.start, None
            return Rendered(pictures, self._describe(prepared.plan), watch.milliseconds, start, warnings)

    def warm_up(self) -> None:
        """Render a grey picture in two steps, so that no job waits for what a device does only once.

        A GPU chooses its kernels by size, so there it is of the usual size; a CPU does not, and is slow.
        """
        with self._lock:
            checkpoint = self._checkpoint or available(self.settings.models)[0]
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
        if checkpoint == self._checkpoint:
            return
        from qwen_edit.weights import Weights

        with Weights([self.settings.models / checkpoint.path], self._pipeline.text_encoder.device) as weights:
            self._use(checkpoint, weights)

    def _use(self, checkpoint: Checkpoint, weights: "Weights") -> None:
        self._checkpoint = None
        self._pipeline.use(checkpoint, self.settings.models, weights)
        self._checkpoint = checkpoint

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


def require_checkpoints(models: Path) -> tuple[Checkpoint, ...]:
    if not models.is_dir():
        raise ModelUnavailable(
            "the folder that MODEL_CACHE_DIR names does not exist; fill it with python -m builder bake"
        )
    on_disk = available(models)
    if not on_disk:
        raise ModelUnavailable("there is no checkpoint in MODEL_CACHE_DIR; fetch one with python -m builder bake")
    return on_disk


def _require_base(models: Path) -> None:
    for name in BASE_FILES:
        if not (models / BASE_FOLDER / name).is_file():
            raise ModelUnavailable(
                f"the base model has no {name} in MODEL_CACHE_DIR; fetch it with python -m builder bake"
            )


def _read_manifest(models: Path) -> Manifest | None:
    try:
        return Manifest.read(models)
    except ManifestError as error:
        raise ModelUnavailable(f"{error}; write it again with python -m builder bake") from error


def _ms_since(started: float) -> float:
    return _ms(time.perf_counter() - started)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
