"""`manifest.json`: what was put into the model directory. Written by the builder, read by the server."""

import json
import reprlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from qwen_edit.store.files import read_file

FILE_NAME = "manifest.json"
VERSION = 1

MADE_HERE = ("demo", "tiny")
"""Sources that are no repository of a hub: each is named as the command of `python -m builder` that writes it."""

MOST_BYTES = 2**63
"""No file is larger: systems count bytes in signed integers of 64 bits."""

_LONGEST_NAME, _LONGEST_PATH = 255, 1024
"""Bytes of a name, as Linux allows, and of a path: a quarter of what Linux allows, for what stands in front of it."""


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

    def check(self) -> None:
        """See that it can be true: whoever writes an entry asks this, and so does whoever reads it.

        Raises:
            ManifestError: it cannot.
        """
        kinds = (str, int, str, str, str)
        values = (self.path, self.bytes, self.sha256, self.repository, self.revision)
        if any(type(value) is not kind for value, kind in zip(values, kinds, strict=True)):
            raise ManifestError(f"{FILE_NAME} has an entry with a value of the wrong type: {reprlib.repr(values)}")
        if not is_inside(self.path):
            raise ManifestError(
                f"{FILE_NAME} names a path that cannot lie below the model directory: {reprlib.repr(self.path)}"
            )
        if not 0 <= self.bytes <= MOST_BYTES or not is_sha256(self.sha256):
            raise ManifestError(f"{FILE_NAME} has a size or sha256 that cannot be true for {self.path!r}")


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
            content = read_file(models / FILE_NAME)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ManifestError(f"{FILE_NAME} cannot be read: {type(error).__name__}: {error.strerror}") from error
        try:
            return cls.parse(content.decode())
        except UnicodeDecodeError as error:
            raise ManifestError(f"{FILE_NAME} cannot be read: it is no text in UTF-8") from error

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """Parse what `dump` wrote.

        Raises:
            ManifestError: as for `read`.
        """
        try:
            document = json.loads(text)
            version = document["version"]
            entries = tuple(sorted(Entry(**item) for item in _listed(document["files"])))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ManifestError(f"{FILE_NAME} is not a manifest: {type(error).__name__}: {_excerpt(error)}") from error
        if type(version) is not int or version != VERSION:
            raise ManifestError(f"{FILE_NAME} has version {reprlib.repr(version)}, expected {VERSION}")
        for entry in entries:
            entry.check()
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


def is_inside(path: str) -> bool:
    """Whether a file can lie at `path` below a folder: printable names between slashes, none too long for a disk."""
    names = path.split("/")
    if "\\" in path or not path.isprintable() or {"", ".", ".."} & set(names):
        return False
    return len(path.encode()) <= _LONGEST_PATH and all(len(name.encode()) <= _LONGEST_NAME for name in names)


def is_sha256(text: str) -> bool:
    """Whether it is a sha256 as it is written everywhere here: 64 hexadecimal digits in lower case."""
    return is_hex(text, 64)


def is_hex(text: str, digits: int) -> bool:
    """Whether it has so many hexadecimal digits in lower case and nothing else."""
    return len(text) == digits and not set(text) - set("0123456789abcdef")


def _listed(files: object) -> list[Any]:
    if not isinstance(files, list):
        raise TypeError(f"files is {reprlib.repr(files)}, expected a list")
    return files


def _excerpt(error: Exception) -> str:
    """What an error says in one short line of ASCII: it can quote the file, which can hold anything of any length."""
    return str(error).encode("unicode_escape").decode("ascii")[:200]
