"""The model on its way to where the plan wants it: read, expanded and assembled, each while the others still are.

No diffusers and no transformers at the top: reading and expanding begin before they are imported.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from qwen_edit.loading.imports.packages import lean_packages
from qwen_edit.loading.imports.torch_parts import lean_torch
from qwen_edit.machine.device import Setup, choose_dtype, set_up
from qwen_edit.machine.gpu_memory import weight_bytes
from qwen_edit.model.transformer.expansion import RECIPES, Expanded, Recipe, expand, groups_of, refill
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, Checkpoint
from qwen_edit.store.folder import BaseWeights, is_used
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header
from qwen_edit.weights.file import Groups
from qwen_edit.weights.reader import BLOCK_BYTES, READERS, WINDOW, Weights
from qwen_edit.weights.sinks import Direct, Sink, sink_for
from qwen_edit.weights.stoppable import Stoppable

if TYPE_CHECKING:
    from qwen_edit.model.pipeline import EditPipeline

HOST = torch.device("cpu")


class Arriving:
    """Files that are being read, and a checkpoint that is expanded as it comes. Close it, or use it in a `with`."""

    def __init__(
        self,
        files: dict[Path, torch.device],
        checkpoint: tuple[Path, torch.device],
        recipe: Recipe,
        dtype: torch.dtype,
        sink_at: Callable[[torch.device], Sink],
    ) -> None:
        """Start, in the order of the files, the checkpoint last.

        Args:
            files: where each is to go.
            checkpoint: likewise.
            dtype: what the checkpoint is expanded to.
            sink_at: what takes the blocks that go there. Where it raises, whoever waits for the file or the checkpoint
                gets the error.

        Raises:
            ModelUnavailable: a file is missing or damaged.
        """
        path, place = checkpoint
        self._info = read_header(path)
        self._places = {**files, path: place}
        groups = {path: groups_of(self._info, recipe)}
        with ExitStack() as opened:
            # Ends last: it waits for what it expands, which stops once that is not read any more.
            expanding = opened.enter_context(ThreadPoolExecutor(1, thread_name_prefix="expand"))
            self._weights = {
                device: opened.enter_context(self._reading(device, groups, sink_at(device)))
                for device in dict.fromkeys(self._places.values())
            }
            packed = self._weights[place].groups(path)
            self._expanded = expanding.submit(expand, self._info, packed, recipe, dtype)
            self._opened = opened.pop_all()

    def weights_of(self, file: Path) -> Weights:
        """What hands a file out."""
        return self._weights[self._places[file]]

    def expanded(self) -> Expanded:
        """Wait for the checkpoint; see `expand` for what is raised."""
        return self._expanded.result()

    @property
    def read_bytes(self) -> int:
        """Of the tensors that have been handed out."""
        return sum(weights.stats.bytes for weights in self._weights.values())

    @property
    def read_seconds(self) -> float:
        """Until the last of them had arrived."""
        return max(weights.stats.seconds for weights in self._weights.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()
        del self._expanded  # a failure would hold on to this object, and so to half a checkpoint

    def _reading(self, device: torch.device, groups: Mapping[Path, Groups], sink: Sink) -> Weights:
        """Begin to read the files that go to a device."""
        files = [path for path, place in self._places.items() if place == device]
        return Weights(files, device, groups=groups, wanted=is_used, sink=sink)


class Loader:
    """Loads what is in a model directory in the way that suits the device, and changes its checkpoint."""

    def __init__(self, models: Path, setup: Setup) -> None:
        self.setup = setup
        self._models = models
        self._recipe = RECIPES[setup.choice.backend]
        self._dtype = choose_dtype(setup.device)
        self._present: CheckpointInfo | None = None
        self.checkpoint: Checkpoint | None = None
        """The one that is loaded; None after a change that failed."""

    @classmethod
    def for_device(cls, settings: Settings, base: BaseWeights, checkpoint: Checkpoint) -> Self:
        """Choose device, backend and offload for what is about to be loaded.

        Raises:
            ModelUnavailable: the settings ask for what this machine does not have, or the model does not fit it.
        """
        setup = set_up(
            settings,
            weight_bytes(base.text_encoder, is_used),
            weight_bytes(base.vae),
            read_header(settings.models / checkpoint.path),
            packed_modulation=True,
            window=WINDOW,
        )
        return cls(settings.models, setup)

    def begin(self, base: BaseWeights, checkpoint: Checkpoint, cancelled: Callable[[], bool]) -> Arriving:
        """Start to read everything.

        Args:
            cancelled: asked before each block, in the threads that read. Once it is set, whoever waits for a file or
                the checkpoint gets `Cancelled`.

        Raises:
            ModelUnavailable: a file is missing or damaged.
        """
        waiting = HOST if self._is_offloaded else self.setup.device
        files = {**dict.fromkeys(base.text_encoder, waiting), **dict.fromkeys(base.vae, self.setup.device)}
        return self._arriving(checkpoint, files, cancelled)

    def importing(self, *, compiled: bool) -> AbstractContextManager[object]:
        """What diffusers and transformers are to be imported in, and their pipeline built."""
        lean = ExitStack()
        if self._recipe.is_dense:  # what the engine imports is not known here
            lean.enter_context(lean_packages())
            if not compiled:
                lean.enter_context(lean_torch())
        return lean

    def assemble(self, arriving: Arriving, checkpoint: Checkpoint, *, compiled: bool) -> "EditPipeline":
        """Build the pipeline around what arrives.

        Args:
            arriving: from `begin`.
            compiled: whether the transformer's blocks are compiled, which the first edit waits for.

        Raises:
            ModelUnavailable: a part is missing or damaged.
            Cancelled: the flag that `begin` was given was set.
        """
        from qwen_edit.loading.assembly import load_base
        from qwen_edit.model.offload import Turns

        pipeline = load_base(self._models / BASE_FOLDER, arriving.weights_of, self._dtype)
        pipeline.compiled = compiled
        pipeline.tile(always=self.setup.tiling)
        if self._is_offloaded:
            pipeline.turns = Turns(self.setup.device)
            pipeline.turns.add(pipeline.text_encoder)
        self._use(pipeline, checkpoint, arriving.expanded())
        return pipeline

    def change(self, pipeline: "EditPipeline", checkpoint: Checkpoint) -> None:
        """Change to another checkpoint, in the memory of the present one where that is on the device and alike.

        Where it fails, the pipeline cannot render before it was changed again.

        Raises:
            ModelUnavailable: the file is missing or damaged.
        """
        info = read_header(self._models / checkpoint.path)  # a file that cannot be used does not cost the one that is
        present, self._present, self.checkpoint = self._present, None, None
        if present is not None and not self._is_offloaded and _are_alike(present, info):
            self._refill(pipeline, checkpoint, info)
            return
        pipeline.drop_transformer()
        with self._arriving(checkpoint, {}, cancelled=lambda: False) as arriving:
            self._use(pipeline, checkpoint, arriving.expanded())

    @property
    def _is_offloaded(self) -> bool:
        return self.setup.offload != "none"

    def _arriving(
        self, checkpoint: Checkpoint, files: dict[Path, torch.device], cancelled: Callable[[], bool]
    ) -> Arriving:
        # The dense backends expand on the device, whatever waits elsewhere afterwards.
        place = HOST if self._is_offloaded and not self._recipe.is_dense else self.setup.device
        path = self._models / checkpoint.path
        return Arriving(files, (path, place), self._recipe, self._dtype, partial(self._sink, cancelled))

    def _sink(self, cancelled: Callable[[], bool], place: torch.device) -> Sink:
        # What waits for its turn is pinned, for which it needs memory of its own, and not a map of its file.
        is_waiting = self._is_offloaded and place == HOST
        return Stoppable(Direct() if is_waiting else sink_for(place, READERS, BLOCK_BYTES), cancelled)

    def _use(self, pipeline: "EditPipeline", checkpoint: Checkpoint, expanded: Expanded) -> None:
        from qwen_edit.loading.assembly import build_transformer, load_scheduler
        from qwen_edit.model.transformer.nunchaku import offload_blocks

        backend = self.setup.choice.backend
        scheduler = load_scheduler(self._models / BASE_FOLDER, checkpoint)
        transformer = build_transformer(backend, expanded)
        expanded.tensors.clear()  # they are the transformer's now, to let go of
        pipeline.use(scheduler, transformer, expanded.modulations, backend)
        if self.setup.offload == "blocks":
            offload_blocks(transformer)
        if self.setup.offload == "model" and pipeline.turns is not None:
            pipeline.turns.add(transformer)
        self._present, self.checkpoint = expanded.info, checkpoint

    def _refill(self, pipeline: "EditPipeline", checkpoint: Checkpoint, info: CheckpointInfo) -> None:
        from qwen_edit.loading.assembly import load_scheduler

        path = self._models / checkpoint.path
        with Weights([path], self.setup.device, groups={path: groups_of(info, self._recipe)}) as weights:
            places = pipeline.transformer.state_dict()
            refill(info, weights.groups(path), self._recipe, self._dtype, places, pipeline.modulations)
        pipeline.follow(load_scheduler(self._models / BASE_FOLDER, checkpoint))
        self._present, self.checkpoint = info, checkpoint


def _are_alike(one: CheckpointInfo, other: CheckpointInfo) -> bool:
    return (one.config, one.rank) == (other.config, other.rank)
