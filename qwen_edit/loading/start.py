"""A start, in order: ask the disk, import torch, read and expand, import the model libraries, assemble.

The slow imports stand inside of `load`, in the order of what they let begin: the disk is asked for the files before
torch is there, and the files are read to the device before diffusers and transformers are.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qwen_edit.contract.response import StartTimings
from qwen_edit.errors import Cancelled
from qwen_edit.loading.switches import Switches
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import Checkpoint
from qwen_edit.store.folder import base_weights
from qwen_edit.weights.disk import Prefetch

if TYPE_CHECKING:
    from qwen_edit.loading.incoming import IncomingModel
    from qwen_edit.loading.loader import Loader
    from qwen_edit.model.pipeline import EditPipeline


def load(
    settings: Settings, checkpoint: Checkpoint, is_cancelled: Callable[[], bool]
) -> "tuple[Loader, EditPipeline, StartTimings]":
    """Load a checkpoint with the base model.

    Args:
        is_cancelled: asked between the stages, and before each read of a file.

    Raises:
        ModelUnavailable: the weights are not there, are damaged, or do not run on this machine.
        OutOfMemory: they do not fit the device.
        Cancelled: the flag was set.
    """
    started = time.perf_counter()
    base = base_weights(settings.models)
    with Prefetch([*base, settings.models / checkpoint.path]):
        from qwen_edit.loading.loader import Loader
        from qwen_edit.machine.device import out_of_memory

        _go_on(is_cancelled)
        switches = Switches(settings.compiled, settings.fused_qkv, settings.triton)
        loader = Loader.for_device(settings, base, checkpoint)
        with (
            out_of_memory("the model does not fit the device's memory"),
            loader.begin(base, checkpoint, is_cancelled) as incoming,
            loader.importing(switches, lean=settings.lean_imports),  # while the above is under way
        ):
            import qwen_edit.model.render  # noqa: F401 - now, and not in the first edit

            imported = time.perf_counter()
            _go_on(is_cancelled)
            pipeline = loader.assemble(incoming, checkpoint, switches)
    return loader, pipeline, _timings(started, imported, incoming)


def _timings(started: float, imported: float, incoming: "IncomingModel") -> StartTimings:
    """Of a start that has just ended, from when it began and when its imports ended (`time.perf_counter`)."""
    ended = time.perf_counter()
    return StartTimings(
        imports=_ms(imported - started),
        read=_ms(incoming.read_seconds),
        read_bytes=incoming.read_bytes,
        assemble=_ms(ended - imported),
        total=_ms(ended - started),
    )


def _go_on(is_cancelled: Callable[[], bool]) -> None:
    if is_cancelled():
        raise Cancelled("the load was cancelled")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
