"""What is checked before the worker takes its first job. None of it reads weights: it takes milliseconds."""

from collections.abc import Callable
from pathlib import Path

from qwen_edit.editor import require_checkpoints
from qwen_edit.errors import EditError
from qwen_edit.manifest import Manifest, ManifestError
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import read_header


class UnfitError(Exception):
    """This worker cannot serve; the sentence says why."""


def checks(settings: Settings) -> list[Callable[[], None]]:
    """The checks of this worker, the cheapest first. Each raises `UnfitError`; the SDK logs its name."""

    def manifest_is_kept() -> None:
        check_manifest(settings.models)

    def checkpoint_headers_are_whole() -> None:
        check_checkpoints(settings.models)

    return [manifest_is_kept, checkpoint_headers_are_whole]


def check_manifest(models: Path) -> None:
    """Every file that the manifest promises is there in its size.

    Raises:
        UnfitError: naming the first that is not. Without a manifest nothing is promised, and this passes.
    """
    try:
        manifest = Manifest.read(models)
    except ManifestError as error:
        raise UnfitError(f"{error}; write it again with python -m builder bake") from error
    for entry in manifest.files if manifest else ():
        path = models / entry.path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.bytes:
            found = "missing" if size is None else f"{size} bytes long"
            promised = f"the manifest promises {entry.bytes} bytes"
            raise UnfitError(f"{entry.path} is {found}, {promised}; run python -m builder bake")


def check_checkpoints(models: Path) -> None:
    """At least one checkpoint is there, and the header of each is that of a whole SVDQuant int4 file.

    Raises:
        UnfitError: naming what is wrong with the first that is not.
    """
    try:
        for checkpoint in require_checkpoints(models):
            read_header(models / checkpoint.path)
    except EditError as error:
        raise UnfitError(error.sentence) from error
