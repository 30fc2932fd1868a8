"""`manifest.json`: what was put into the model directory. Written by the builder, read by the server."""

import json
import reprlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

FILE_NAME = "manifest.json"
VERSION = 1

MADE_HERE = ("demo", "tiny")
"""Sources that are no repository of a hub: each is named as the command of `python -m builder` that writes it."""


class ManifestError(Exception):
    """The manifest is there but cannot be used."""


@dataclass(frozen=True, order=True)
class Entry:
    """One file: its path below the model directory (forward slashes), size in bytes, sha256 in hex, and its source."""

    path: str
    bytes: int
    sha256: str
    repository: str
    revision: str

    @property
    def command(self) -> str:
        """The command of `python -m builder` that brings the file."""
        return self.repository if self.repository in MADE_HERE else "bake"


@dataclass(frozen=True)
class Manifest:
    """The files of a model directory, ordered by path."""

    files: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, models: Path) -> "Manifest | None":
        """Read it from a model directory; None where there is none.

        Raises:
            ManifestError: the file cannot be read as a manifest of this version.
        """
        try:
            text = (models / FILE_NAME).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{FILE_NAME} cannot be read: {type(error).__name__}") from error
        return cls.parse(text)

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """Parse what `dump` wrote.

        Raises:
            ManifestError: as for `read`.
        """
        try:
            document = json.loads(text)
            version = document["version"]
            entries = tuple(sorted(Entry(**item) for item in document["files"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(f"{FILE_NAME} is not a manifest: {type(error).__name__}: {error}") from error
        if type(version) is not int or version != VERSION:
            raise ManifestError(f"{FILE_NAME} has version {reprlib.repr(version)}, expected {VERSION}")
        for entry in entries:
            _check(entry)
        for entry, following in pairwise(entries):
            if entry.path == following.path:
                raise ManifestError(f"{FILE_NAME} names {entry.path!r} twice")
        return cls(entries)

    def dump(self) -> str:
        """The text to write: the same manifest gives the same bytes."""
        return (
            json.dumps({"version": VERSION, "files": [asdict(entry) for entry in sorted(self.files)]}, indent=1) + "\n"
        )

    def entry(self, path: str) -> Entry | None:
        """The entry of the file at `path`, or None."""
        return next((entry for entry in self.files if entry.path == path), None)

    def repositories(self) -> set[str]:
        """Where the files came from."""
        return {entry.repository for entry in self.files}


def _check(entry: Entry) -> None:
    kinds = (str, int, str, str, str)
    values = (entry.path, entry.bytes, entry.sha256, entry.repository, entry.revision)
    if any(type(value) is not kind for value, kind in zip(values, kinds, strict=True)):
        raise ManifestError(f"{FILE_NAME} has an entry with a value of the wrong type: {reprlib.repr(values)}")
    parts = entry.path.split("/")
    if "\\" in entry.path or not entry.path.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ManifestError(f"{FILE_NAME} names a path that cannot lie below the model directory: {entry.path!r}")
    if entry.bytes < 0 or len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
        raise ManifestError(f"{FILE_NAME} has a size or sha256 that cannot be true for {entry.path!r}")
