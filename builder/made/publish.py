"""Puts a model that is made here into a model directory: whole, listed, and never over weights of another source."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.bake import record
from builder.bake.errors import OccupiedError, local_fault
from builder.bake.models_option import INCOMPLETE
from builder.bake.parts import FOLDERS
from qwen_edit.store.files import open_file
from qwen_edit.store.manifest import Entry, Manifest, ManifestError


@contextmanager
def publishing(models: Path, repository: str, revision: str) -> Iterator[Path]:
    """A folder to write a model to. In the end its files move below `models`, and `manifest.json` lists them.

    What the same source put there before is replaced; so is a file of the same bytes that a cut run left unlisted.

    Args:
        repository: what the manifest names as the source, so that no reply can pass the weights off as the real ones.
        revision: the same.

    Raises:
        BakeError: the directory holds anything else, another process is writing to it, or it cannot be written.
    """
    draft = models / f"{repository}{INCOMPLETE}"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with record.exclusive(models), _emptied(draft):
            before = _before(models, repository)
            yield draft
            manifest = Manifest(tuple(_entry(path, draft, repository, revision) for path in _files(draft)))
            _refuse_unlisted(models, before, manifest)
            _move(draft, models, manifest)
            _prune(models, before, manifest)
            record.write(models, manifest)
    except OSError as error:
        raise local_fault(error, models) from error


@contextmanager
def _emptied(draft: Path) -> Iterator[None]:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _before(models: Path, repository: str) -> Manifest:
    """What the directory's manifest lists, all of it from `repository`."""
    try:
        manifest = Manifest.read(models) or Manifest()
    except ManifestError as error:
        raise OccupiedError(models, f"what cannot be told: {error}") from error
    if others := manifest.repositories() - {repository}:
        raise OccupiedError(models, f"the weights of {', '.join(sorted(others))}")
    return manifest


def _refuse_unlisted(models: Path, before: Manifest, manifest: Manifest) -> None:
    """Refuse files that nobody vouches for, unless they are those of `manifest` to the byte."""
    found = {path.relative_to(models).as_posix() for folder in FOLDERS.values() for path in _files(models / folder)}
    found |= {entry.path for entry in manifest.files if (models / entry.path).exists()}
    for path in sorted(found - {entry.path for entry in before.files}):
        entry = manifest.entry(path)
        if entry is None or entry.sha256 != _sha256(models / path):
            raise OccupiedError(models, f"{path}, which no manifest there lists")


def _move(draft: Path, models: Path, manifest: Manifest) -> None:
    for entry in manifest.files:
        (models / entry.path).parent.mkdir(parents=True, exist_ok=True)
        (draft / entry.path).replace(models / entry.path)


def _prune(models: Path, before: Manifest, manifest: Manifest) -> None:
    for path in {entry.path for entry in before.files} - {entry.path for entry in manifest.files}:
        (models / path).unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def _entry(path: Path, folder: Path, repository: str, revision: str) -> Entry:
    return Entry(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path), repository, revision)


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
