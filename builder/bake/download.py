"""One file: fetched into a partial file beside its place, proven by its hash, and only then moved there."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from builder.bake.errors import BakeError, WrongContentError, local_fault
from builder.bake.hub import Hub, Listing, RemoteFile
from builder.bake.models_option import INCOMPLETE
from qwen_edit.store.files import open_file

if TYPE_CHECKING:
    from hashlib import _Hash

READ = 1 << 20


class Digest:
    """The hashes of a file as its bytes pass: sha256 for the manifest, git's blob id where the hub has only that."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._blob: _Hash | None = None
        if file.sha256 is None:
            self._blob = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False)

    def update(self, chunk: bytes | memoryview) -> None:
        self._sha256.update(chunk)
        if self._blob is not None:
            self._blob.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def fault(self) -> str | None:
        """What is wrong with the bytes that passed, or None."""
        if self._blob is not None:
            return _difference("git blob id", self._blob.hexdigest(), self._file.blob)
        return _difference("sha256", self.sha256, self._file.sha256)


class Partial:
    """The part of a file that was fetched so far, hashed from its first byte on as it grows."""

    def __init__(self, path: Path, file: RemoteFile, advance: Callable[[int], None]) -> None:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.unlink()  # of somebody else: what is written must land here
        self._stream: BinaryIO = path.open("a+b", buffering=0)
        self._file = file
        self._advance = advance
        self._count(Digest(file), 0)

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def take_up(self, halt: Callable[[], None]) -> None:
        """Count and hash what is there already; `halt` is asked before each block."""
        self._stream.seek(0)
        while chunk := self._stream.read(READ):
            halt()
            self._add(chunk)
        if self.size > self._file.bytes:
            self.restart()

    def write(self, offset: int, chunk: bytes) -> None:
        """Add a chunk; one at offset 0 begins anew.

        Raises:
            WrongContentError: the file grows beyond its size.
        """
        if offset != self.size:
            self.restart()
        if self.size + len(chunk) > self._file.bytes:
            raise WrongContentError(f"{self._file.path} is longer than the {self._file.bytes} bytes that the hub lists")
        self._stream.write(chunk)
        self._add(chunk)

    def restart(self) -> None:
        """Forget all bytes."""
        self._stream.truncate(0)
        self._advance(-self.size)
        self._count(Digest(self._file), 0)

    def _add(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)
        self._advance(len(chunk))

    def _count(self, digest: Digest, size: int) -> None:
        self.digest, self.size = digest, size


def partial_path(target: Path, file: RemoteFile) -> Path:
    """Where the bytes gather: beside the file's place, so that the move is a rename; named by content, so that a part
    of one version is never continued with another."""
    return target.with_name(f"{target.name}.{(file.sha256 or file.blob)[:16]}{INCOMPLETE}")


def fetch(
    hub: Hub,
    listing: Listing,
    file: RemoteFile,
    target: Path,
    advance: Callable[[int], None],
    say: Callable[[str], None],
) -> str:
    """Bring one file to `target` and return its sha256. What a cut left behind is continued.

    Content that is not what the hub lists is fetched again once.

    Raises:
        BakeError: it cannot be brought; a partial file stays for the next run.
    """
    partial = partial_path(target, file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with Partial(partial, file, advance) as part:
            part.take_up(hub.halt_if_stopped)
            try:
                _complete(hub, listing, file, part, say)
            except WrongContentError as error:
                say(f"{error}; fetching it once more")
                part.restart()
                _complete(hub, listing, file, part, say)
        _settle(partial, target)
    except WrongContentError as error:
        partial.unlink(missing_ok=True)
        remedy = "the hub or a proxy between serves bad data: try again later, or pin another commit with --revision"
        raise BakeError(f"{error}, twice; {remedy}") from error
    except OSError as error:
        raise local_fault(error, target) from error
    return part.digest.sha256


def digest_of(path: Path, file: RemoteFile, advance: Callable[[int], None], halt: Callable[[], None]) -> Digest:
    """The hashes of the whole file at `path`."""
    digest = Digest(file)
    with open_file(path) as stream:
        while chunk := stream.read(READ):
            halt()
            digest.update(chunk)
            advance(len(chunk))
    return digest


def _complete(hub: Hub, listing: Listing, file: RemoteFile, part: Partial, say: Callable[[str], None]) -> None:
    mark = part.size

    def progressed() -> bool:
        nonlocal mark
        before, mark = mark, part.size
        return mark > before

    if part.size < file.bytes:
        hub.patiently(lambda: _append(hub, listing, file.path, part), progressed, say)
    if part.size < file.bytes:
        raise WrongContentError(f"{file.path} has {part.size} bytes, {file.bytes} in the hub's listing")
    if fault := part.digest.fault():
        raise WrongContentError(f"{file.path} has {fault}")


def _append(hub: Hub, listing: Listing, path: str, part: Partial) -> None:
    for offset, chunk in hub.stream(listing, path, part.size):
        hub.halt_if_stopped()
        part.write(offset, chunk)


def _settle(partial: Path, target: Path) -> None:
    partial.replace(target)
    for other in target.parent.glob(f"{target.name}.*{INCOMPLETE}"):
        other.unlink(missing_ok=True)


def _difference(what: str, found: str, listed: str | None) -> str | None:
    return None if found == listed else f"{what} {found[:12]}…, {(listed or '')[:12]}… in the hub's listing"
