"""What a bake has to do for each file, decided before any byte is fetched."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from builder.bake.download import digest_of, partial_path
from builder.bake.errors import BakeError
from builder.bake.hub import Hub, Listing, RemoteFile
from builder.bake.parts import Part
from builder.bake.record import Record
from qwen_edit.store.manifest import Entry


@dataclass(frozen=True)
class Task:
    """One file of one part. `held` is the sha256 of a file that is there and whole, `there` one to be read first."""

    part: Part
    listing: Listing
    file: RemoteFile
    held: str | None
    there: bool

    @property
    def path(self) -> str:
        """Where it lies below the model directory."""
        return f"{self.part.folder}/{self.file.path}"

    def entry(self, sha256: str) -> Entry:
        """The manifest's line for the file once it is whole."""
        return Entry(self.path, self.file.bytes, sha256, self.listing.repository, self.listing.commit)

    def missing(self, models: Path) -> int:
        """Bytes that still have to be written."""
        if self.held is not None or self.there:
            return 0
        return self.file.bytes - min(_size(partial_path(models / self.path, self.file)) or 0, self.file.bytes)


def tasks(part: Part, listing: Listing, models: Path, record: Record, reread: bool) -> tuple[Task, ...]:
    """The files of `part` in the hub's listing, each with what is known of it on disk.

    A file that the manifest names with the hub's own hash is trusted by its size, unless `reread`.

    Raises:
        BakeError: the listing lacks a file that the part needs.
    """
    files = [file for file in listing.files if part.wants(file.path)]
    if lacking := part.lacks(file.path for file in files):
        problem = f"{listing.repository} has no {lacking[0]} at commit {listing.commit[:12]}"
        raise BakeError(f"{problem}; pin a commit that has it with --revision {part.kind}=COMMIT")
    return tuple(_task(part, listing, file, models, record, reread) for file in files)


def whole(task: Task, models: Path, hub: Hub, advance: Callable[[int], None]) -> str | None:
    """The sha256 of the file at its place if it is what the hub lists, else None, and then no byte is counted."""
    counted = 0

    def count(read: int) -> None:
        nonlocal counted
        counted += read
        advance(read)

    try:
        digest = digest_of(models / task.path, task.file, count, hub.halt_if_stopped)
    except OSError:
        digest = None
    if digest is None or digest.fault():
        advance(-counted)
        return None
    return digest.sha256


def _task(part: Part, listing: Listing, file: RemoteFile, models: Path, record: Record, reread: bool) -> Task:
    path = f"{part.folder}/{file.path}"
    there = _size(models / path) == file.bytes
    entry = record.entry(path)
    trusted = there and not reread and entry is not None and entry.bytes == file.bytes and entry.sha256 == file.sha256
    return Task(part, listing, file, entry.sha256 if trusted and entry else None, there)


def _size(path: Path) -> int | None:
    """Bytes of a real file; a link counts as none, for what it points to is another's."""
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None
