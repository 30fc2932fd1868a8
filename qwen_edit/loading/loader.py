"""What is loaded where, and how a checkpoint changes.

No diffusers and no transformers at the top: reading and expanding begin before they are imported.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from qwen_edit.edit.hooks import never
from qwen_edit.errors import Cancelled
from qwen_edit.loading.imports.lean import lean_imports
from qwen_edit.loading.incoming import IncomingModel
from qwen_edit.loading.switches import Switches
from qwen_edit.machine.device import MachineSetup, choose_dtype, set_up
from qwen_edit.machine.gpu_memory import weight_bytes
from qwen_edit.model.transformer.expansion import FORMATS, Expanded, portions_of, refill
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, Checkpoint
from qwen_edit.store.folder import BaseWeights, is_used
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header
from qwen_edit.weights.reader import BYTES_A_READ, READERS, Weights
from qwen_edit.weights.sinks import HostMemory, Sink, sink_for
from qwen_edit.weights.stoppable import Stoppable

if TYPE_CHECKING:
    from qwen_edit.model.pipeline import EditPipeline
    from qwen_edit.model.transformer.fused.choose import Kernels

HOST = torch.device("cpu")


class Loader:
    """Loads what is in a model directory in the way that suits the device, and changes its checkpoint."""

    def __init__(self, models: Path, setup: MachineSetup) -> None:
        self.setup = setup
        self._models = models
        self._form = FORMATS[setup.choice.backend]
        self._dtype = choose_dtype(setup.device)
        self._present: CheckpointInfo | None = None
        self._switches = Switches()
        self._kernels: Kernels | None = None
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
        )
        return cls(settings.models, setup)

    def begin(self, base: BaseWeights, checkpoint: Checkpoint, cancelled: Callable[[], bool]) -> IncomingModel:
        """Start to read everything.

        Args:
            cancelled: asked before each block, in the threads that read. Once it is set, whoever waits for a file or
                the checkpoint gets `Cancelled`.

        Raises:
            ModelUnavailable: a file is missing or damaged.
        """
        waiting = HOST if self._is_offloaded else self.setup.device
        files = {**dict.fromkeys(base.text_encoder, waiting), **dict.fromkeys(base.vae, self.setup.device)}
        return self._incoming(checkpoint, files, cancelled)

    @contextmanager
    def importing(self, switches: Switches, *, lean: bool) -> Iterator[None]:
        """Import diffusers and transformers, what they are built in, and the engine where it is to run.

        Args:
            switches: what is to be compiled or fused, which takes imports of its own.
            lean: without what an edit does not use.

        Raises:
            ModelUnavailable: the engine cannot be used.
        """
        is_known = self._form.is_dense  # what the engine imports is not known here
        with lean_imports("qwen_edit.loading.assembly", enabled=lean and is_known, compiled=switches.compiled):
            if not self._form.is_dense:  # beside the reading, which an engine that is broken need not wait for
                from qwen_edit.model.transformer.nunchaku_engine import engine_class, fused_product

                engine_class()
                if switches.fused_qkv:
                    fused_product()
            yield

    def assemble(self, incoming: IncomingModel, checkpoint: Checkpoint, switches: Switches) -> "EditPipeline":
        """Build the pipeline around what comes.

        Args:
            incoming: from `begin`.
            switches: how the transformer computes.

        Raises:
            ModelUnavailable: a part is missing or damaged.
            Cancelled: the flag that `begin` was given was set.
        """
        from qwen_edit.loading.assembly import load_base
        from qwen_edit.loading.kernels import choose_kernels
        from qwen_edit.model.offload.turns import DeviceTurns, Stays

        self._switches = switches
        if self._form.is_dense:
            self._kernels = choose_kernels(self.setup.device, self._dtype, incoming.info.config, switches)
        stays = Stays(*self.setup.stays)
        turns = DeviceTurns(self.setup.device, stays, whole=switches.compiled) if self._is_offloaded else None
        pipeline = load_base(
            self._models / BASE_FOLDER,
            incoming.weights_of,
            self.setup.device,
            self._dtype,
            tiling=self.setup.tiling,
            turns=turns,
        )
        self._use(pipeline, checkpoint, incoming.expanded())
        return pipeline

    def change(
        self, pipeline: "EditPipeline", checkpoint: Checkpoint, is_cancelled: Callable[[], bool] = never
    ) -> None:
        """Change to another checkpoint, in the memory of the present one where that is on the device and alike.

        Where it fails, the pipeline cannot render before it was changed again.

        Args:
            is_cancelled: asked before each read.

        Raises:
            ModelUnavailable: the file is missing or damaged.
            Cancelled: the flag was set.
        """
        if is_cancelled():  # before anything is given up for it
            raise Cancelled("the edit was cancelled")
        info = read_header(self._models / checkpoint.path)  # a file that cannot be used does not cost the one that is
        present, self._present, self.checkpoint = self._present, None, None
        if present is not None and not self._is_offloaded and _are_alike(present, info):
            self._refill(pipeline, checkpoint, info, is_cancelled)
            return
        pipeline.drop_transformer()
        with self._incoming(checkpoint, {}, is_cancelled) as incoming:
            self._use(pipeline, checkpoint, incoming.expanded())

    @property
    def _is_offloaded(self) -> bool:
        return self.setup.offload != "none"

    def _incoming(
        self, checkpoint: Checkpoint, files: dict[Path, torch.device], cancelled: Callable[[], bool]
    ) -> IncomingModel:
        # The dense backends expand on the device, whatever waits elsewhere afterwards.
        place = HOST if self._is_offloaded and not self._form.is_dense else self.setup.device
        path = self._models / checkpoint.path
        return IncomingModel(files, (path, place), self._form, self._dtype, partial(self._sink, cancelled))

    def _sink(self, cancelled: Callable[[], bool], place: torch.device) -> Sink:
        # What waits for its turn is pinned, for which it needs memory of its own, and not a map of its file.
        is_waiting = self._is_offloaded and place == HOST
        return Stoppable(HostMemory() if is_waiting else sink_for(place, READERS, BYTES_A_READ), cancelled)

    def _use(self, pipeline: "EditPipeline", checkpoint: Checkpoint, expanded: Expanded) -> None:
        from qwen_edit.loading.assembly import build_transformer, load_scheduler
        from qwen_edit.model.transformer.nunchaku import offload_blocks

        backend = self.setup.choice.backend
        scheduler = load_scheduler(self._models / BASE_FOLDER, checkpoint)
        transformer = build_transformer(backend, expanded, self._switches, self._kernels)
        expanded.tensors.clear()  # they are the transformer's now, to let go of
        if self.setup.offload == "blocks":
            offload_blocks(transformer)
        in_turns = self.setup.offload == "model"
        pipeline.use(scheduler, transformer, expanded.modulations, backend, in_turns=in_turns)
        self._present, self.checkpoint = expanded.info, checkpoint

    def _refill(
        self,
        pipeline: "EditPipeline",
        checkpoint: Checkpoint,
        info: CheckpointInfo,
        is_cancelled: Callable[[], bool],
    ) -> None:
        from qwen_edit.loading.assembly import load_scheduler

        path = self._models / checkpoint.path
        portions = {path: portions_of(info, self._form)}
        sink = self._sink(is_cancelled, self.setup.device)
        with Weights([path], self.setup.device, portions=portions, sink=sink) as weights:
            places = pipeline.transformer.state_dict()
            refill(info, weights.portions(path), self._form, self._dtype, places, pipeline.modulations)
        pipeline.use_schedule(load_scheduler(self._models / BASE_FOLDER, checkpoint))
        self._present, self.checkpoint = info, checkpoint


def _are_alike(one: CheckpointInfo, other: CheckpointInfo) -> bool:
    return (one.config, one.rank) == (other.config, other.rank)
