"""Lists a model directory that was written here, not fetched."""

import hashlib
from pathlib import Path

from builder import record
from qwen_edit.manifest import FILE_NAME, Entry, Manifest


def write_manifest(models: Path, repository: str, revision: str) -> None:
    """List every file below `models` in its `manifest.json`.

    Args:
        repository: what the manifest names as the source, so that no reply can pass the weights off as the real ones.
        revision: the same.
    """
    files = sorted(path for path in models.rglob("*") if path.is_file() and path.name != FILE_NAME)
    record.write(models, Manifest(tuple(_entry(path, models, repository, revision) for path in files)))


def _entry(path: Path, models: Path, repository: str, revision: str) -> Entry:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Entry(path.relative_to(models).as_posix(), path.stat().st_size, digest, repository, revision)
