"""What is checked before the worker takes its first job. None of it reads weights: it takes milliseconds."""

from collections.abc import Callable
from pathlib import Path

from qwen_edit.backend import HOW_TO_INSTALL, find_engine
from qwen_edit.catalog import CHECKPOINTS
from qwen_edit.errors import EditError
from qwen_edit.log import log
from qwen_edit.model_folder import base_weights, broken_promises, read_manifest, require_checkpoints
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import read_header


class UnfitError(Exception):
    """This worker cannot serve; the sentence says why."""


def checks(settings: Settings) -> list[Callable[[], None]]:
    """The checks of the engine and the files, the cheapest first; the device is checked as the editor loads.

    Each raises `UnfitError`. A worker that may download has none of the files': its load mends what they would find.
    """

    def base_model_is_whole() -> None:
        check_base(settings.models)

    def a_checkpoint_is_whole() -> None:
        check_checkpoints(settings.models)

    engine = [check_engine] if settings.backend == "nunchaku" else []
    return engine if settings.allow_download else [*engine, base_model_is_whole, a_checkpoint_is_whole]


def check_engine() -> None:
    """The engine that QWEN_EDIT_BACKEND=nunchaku needs is installed; whether it can be imported is seen at the load.

    Raises:
        UnfitError: it is not, or it is another package.
    """
    if fault := find_engine().fault:
        raise UnfitError(f"QWEN_EDIT_BACKEND is nunchaku, but {fault}; {HOW_TO_INSTALL}")


def check_base(models: Path) -> None:
    """The base model is there, each file in the size that the manifest promises, if there is one.

    Raises:
        UnfitError: naming the first file that is not.
    """
    try:
        base_weights(models)
        manifest = read_manifest(models)
    except EditError as error:
        raise UnfitError(error.sentence) from error
    checkpoints = {checkpoint.path for checkpoint in CHECKPOINTS}
    for entry, sentence in broken_promises(models, manifest):
        if entry.path not in checkpoints:
            raise UnfitError(sentence)


def check_checkpoints(models: Path) -> None:
    """The checkpoint that is loaded first has the header of a whole SVDQuant int4 file.

    One that is not whole among the others fails only the jobs that ask for it, so it is logged.

    Raises:
        UnfitError: naming what is wrong with it.
    """
    try:
        first, *others = require_checkpoints(models)
        read_header(models / first.path)
    except EditError as error:
        raise UnfitError(error.sentence) from error
    for other in others:
        try:
            read_header(models / other.path)
        except EditError as error:
            log("checkpoint not whole", "warning", error=error.sentence)
