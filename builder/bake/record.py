"""The manifest while it grows: one writer at a time, and a whole manifest on disk at any moment."""

import fcntl
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.bake.errors import BakeError, BusyError
from builder.bake.models_option import INCOMPLETE
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest, ManifestError


def write(models: Path, manifest: Manifest) -> None:
    """Put `manifest` into the model directory in one step: a reader sees the old one or the new one.

    Raises:
        BakeError: a reader would refuse it.
    """
    text = manifest.dump()
    try:
        Manifest.parse(text)
    except ManifestError as error:
        raise BakeError(f"{error}, so it is not written; the hub or a proxy between serves bad data") from error
    draft = models / f"{FILE_NAME}{INCOMPLETE}"
    draft.unlink(missing_ok=True)
    with draft.open("x", encoding="utf-8") as file:  # never a pipe or a link that somebody left in its place
        file.write(text)
    draft.replace(models / FILE_NAME)


@contextmanager
def exclusive(models: Path) -> Iterator[None]:
    """Be the one that writes to `models`. The lock ends with the process, however that ends, and leaves no file.

    Raises:
        BusyError: another process has it.
    """
    folder = os.open(models, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(f"another process is writing to {models}; wait for its end, or stop it") from error
    finally:
        os.close(folder)


class Record:
    """The entries of files that were proven whole, on disk as soon as each is added. Safe to use from many threads."""

    def __init__(self, models: Path, manifest: Manifest) -> None:
        self._models = models
        self._entries = {entry.path: entry for entry in manifest.files}
        self._lock = threading.Lock()

    def entry(self, path: str) -> Entry | None:
        """The entry of the file at `path`, or None."""
        return self._entries.get(path)

    def paths(self) -> tuple[str, ...]:
        """Every path that has an entry."""
        return tuple(self._entries)

    def put(self, entry: Entry) -> None:
        """Add or replace one entry.

        Raises:
            BakeError: a reader of the manifest would refuse it.
        """
        with self._lock:
            if self._entries.get(entry.path) != entry:
                self._write({**self._entries, entry.path: entry})

    def drop(self, paths: Iterable[str]) -> None:
        """Forget the entries of `paths`."""
        with self._lock:
            gone = set(paths)
            kept = {path: entry for path, entry in self._entries.items() if path not in gone}
            if len(kept) < len(self._entries):
                self._write(kept)

    def _write(self, entries: dict[str, Entry]) -> None:
        write(self._models, Manifest(tuple(entries.values())))
        self._entries = entries
