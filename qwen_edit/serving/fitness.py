"""What is checked before the worker takes its first job. It reads hardly any weights: it takes milliseconds."""

import os
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

from qwen_edit.errors import EditError, ModelUnavailable
from qwen_edit.log import log
from qwen_edit.machine.engine import HOW_TO_INSTALL, find_engine
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import CHECKPOINTS
from qwen_edit.store.documents import disk_errors, file_name
from qwen_edit.store.files import open_file
from qwen_edit.store.folder import base_weights, broken_promises, read_manifest, require_checkpoints
from qwen_edit.store.manifest import Manifest
from qwen_edit.svdq.checkpoint import CheckpointInfo, read_header

_CHECKPOINT_PATHS = {checkpoint.path for checkpoint in CHECKPOINTS}
_SAMPLED = ".attn.to_qkv.proj_up"
_SAMPLE_BYTES = 4096


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
    for entry, sentence in broken_promises(models, manifest):
        if entry.path not in _CHECKPOINT_PATHS:
            raise UnfitError(sentence)


def check_checkpoints(models: Path) -> None:
    """The checkpoint that is loaded first has the size that the manifest promises, and the header of a whole file.

    One that is not whole among the others fails only the jobs that ask for it, so it is logged. Where two are there
    and the manifest promises two, they are not one file twice: the published ones have the same size and the same
    tensors, and one in the place of the other would be served under its name and hash.

    What only reading all of a file would tell is not checked: that its values are those of the hash in the manifest.
    Any other file of the same shape passes unless it is that of the other checkpoint beside it, and so do damaged
    values. `python3 verify_models.py --hash` finds them.

    Raises:
        UnfitError: naming what is wrong with it.
    """
    try:
        first, *others = (checkpoint.path for checkpoint in require_checkpoints(models))
        manifest = read_manifest(models)
        faults = {entry.path: sentence for entry, sentence in broken_promises(models, manifest)}
        headers = {first: _header(models, first, faults)}
        for path in (*others, *(_CHECKPOINT_PATHS & faults.keys() - {first, *others})):
            try:
                headers[path] = _header(models, path, faults)
            except ModelUnavailable as error:
                log("checkpoint not whole", "warning", error=error.sentence)
        _refuse_copies(models, manifest, headers)
    except EditError as error:
        raise UnfitError(error.sentence) from error


def _header(models: Path, path: str, faults: Mapping[str, str]) -> CheckpointInfo:
    if path in faults:
        raise ModelUnavailable(faults[path])
    return read_header(models / path)


def _refuse_copies(models: Path, manifest: Manifest | None, headers: Mapping[str, CheckpointInfo]) -> None:
    hashes = {path: entry.sha256 for path in headers if manifest and (entry := manifest.entry(path))}
    for one, other in combinations(hashes, 2):
        samples = [_sample(models / path, headers[path]) for path in (one, other)]
        if hashes[one] != hashes[other] and samples[0] == samples[1]:
            raise ModelUnavailable(
                f"{one} and {other} hold the same weights, the manifest promises two different files; "
                "see which is which with python3 verify_models.py --hash"
            )


def _sample(path: Path, info: CheckpointInfo) -> list[bytes]:
    """The first values of a tensor in each block: of the low-rank part, which no two trainings have in common."""
    with disk_errors(file_name(path)), open_file(path) as file:
        return [
            os.pread(file.fileno(), min(entry.bytes, _SAMPLE_BYTES), entry.offset)
            for name, entry in info.tensors.items()
            if name.endswith(_SAMPLED)
        ]
