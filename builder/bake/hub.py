"""The model hub, through its own client: what a repository holds at a commit, and the bytes of one file."""

import json
import reprlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in its __all__

from builder.bake.errors import HubError, StoppedError
from builder.bake.hub_errors import RESUME, explained, no_hub
from qwen_edit.store.manifest import MOST_BYTES, is_hex, is_inside, is_sha256

T = TypeVar("T")

LONGEST_LISTING = 16 << 20
"""Bytes of a listing: that of a repository with a hundred files has 40 kB."""

_TOLD = ("content-type", "retry-after", "ratelimit", "ratelimit-policy", "x-error-code", "x-error-message")
"""Headers that say why a hub refused."""


@dataclass(frozen=True)
class Patience:
    """How long to bear with the hub: `attempts` in a row that brought nothing, `wait` seconds before the second.

    The wait doubles up to `longest`. `timeout` is the longest silence on a connection, in seconds, and `listing` the
    longest time for a whole listing. `window` seconds of a file must bring `least` bytes.
    """

    attempts: int = 6
    wait: float = 1.0
    longest: float = 30.0
    timeout: float = constants.HF_HUB_DOWNLOAD_TIMEOUT
    listing: float = 120.0
    window: float = 60.0
    least: int = 60_000

    def before(self, attempt: int) -> float:
        """Seconds to wait before attempt number `attempt`, from 2."""
        return float(min(self.longest, self.wait * 2 ** (attempt - 2)))


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it: a large (LFS) one by its `sha256`, a small one by git's `blob` id alone."""

    path: str
    bytes: int
    blob: str
    sha256: str | None


@dataclass(frozen=True)
class Listing:
    """The files of a repository at a commit."""

    repository: str
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Hub:
    """One hub. `stop` ends every transfer and every wait with a `StoppedError`."""

    endpoint: str = constants.ENDPOINT
    token: str | None = None
    patience: Patience = field(default_factory=Patience)
    stop: threading.Event = field(default_factory=threading.Event)

    def listing(self, repository: str, revision: str, say: Callable[[str], None]) -> Listing:
        """What `repository` holds at `revision` (a commit, branch or tag).

        Raises:
            HubError: it cannot be read.
        """
        return self.patiently(lambda: self._listing(repository, revision), lambda: False, say)

    def stream(self, listing: Listing, path: str, start: int) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file from `start` on, as (offset, chunk); from 0 on where the hub does not resume.

        Plain HTTP on purpose: the hub's chunk store gives what cannot be continued after a cut, nor hashed on its way.

        Raises:
            HubError: the transfer failed or was cut.
            WrongContentError: the hub's file ends before `start`.
        """
        url = hf_hub_url(listing.repository, path, revision=listing.commit, endpoint=self.endpoint)
        headers = {"Range": f"bytes={start}-"} if start else {}
        with (
            explained(f"{path} of {listing.repository}", self.endpoint),
            self._answer(url, headers) as response,
        ):
            offset = start if response.status_code == 206 else 0
            begun, before = time.monotonic(), offset
            for chunk in response.iter_raw():
                if (seconds := time.monotonic() - begun) > self.patience.window:
                    if offset - before < self.patience.least:
                        raise _slow(path, offset - before, seconds)
                    begun, before = time.monotonic(), offset
                yield offset, chunk
                offset += len(chunk)

    def patiently(self, action: Callable[[], T], progressed: Callable[[], bool], say: Callable[[str], None]) -> T:
        """Do `action`, again and again while it fails for a while; one that `progressed` starts the count anew.

        Raises:
            HubError: it failed for good, or `patience` is used up.
        """
        attempt = 1
        while True:
            try:
                return action()
            except HubError as error:
                if not error.transient:
                    raise
                attempt = 2 if progressed() and not error.is_slow else attempt + 1
                if attempt > self.patience.attempts:
                    raise error.after(self.patience.attempts) from error
                self._wait(error, attempt, say)

    def halt_if_stopped(self) -> None:
        """Raise a `StoppedError` once `stop` is set."""
        if self.stop.is_set():
            raise StoppedError

    def _wait(self, error: HubError, attempt: int, say: Callable[[str], None]) -> None:
        seconds = self.patience.before(attempt) if error.wait is None else error.wait
        say(f"{error.problem}; attempt {attempt} of {self.patience.attempts} in {seconds:g} s")
        self.stop.wait(seconds)
        self.halt_if_stopped()

    def _listing(self, repository: str, revision: str) -> Listing:
        what = f"{repository} at {revision}"
        with explained(what, self.endpoint):
            document = json.loads(self._info(repository, revision, what))
            try:
                return _listed(repository, document)
            except _WrongListingError as error:
                raise no_hub(self.endpoint, f"for {what} it lists {error}") from error

    def _info(self, repository: str, revision: str, what: str) -> bytes:
        """What the hub tells of a repository, as it comes. Whole it must come in time, and be of a listing's size."""
        url = f"{self.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
        ends = time.monotonic() + self.patience.listing
        content = bytearray()
        with self._answer(url, {}) as response:
            for chunk in response.iter_raw():
                self.halt_if_stopped()
                content += chunk
                if len(content) > LONGEST_LISTING:
                    raise no_hub(self.endpoint, f"for {what} it lists more than {LONGEST_LISTING} bytes")
                if time.monotonic() > ends:
                    problem = f"{what}: the hub's listing is not whole after {self.patience.listing:g} s"
                    raise HubError(problem, f"check the network and {RESUME}", transient=True)
        return bytes(content)

    @contextmanager
    def _answer(self, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        """An answer whose body is still to come. Where the hub refuses, what it says beside its headers is not read."""
        # Ranges and sizes count the file's own bytes, so no compression on the way.
        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity", **headers}
        with get_session().stream("GET", url, headers=headers, timeout=self.patience.timeout) as response:
            if response.is_error:
                told = {name: value[:200] for name, value in response.headers.items() if name.lower() in _TOLD}
                hf_raise_for_status(httpx2.Response(response.status_code, headers=told, request=response.request))
            yield response


def _slow(path: str, count: int, seconds: float) -> HubError:
    problem = f"{path}: the hub sent {count} bytes in {seconds:.0f} s"
    return HubError(problem, f"check the network and {RESUME}", transient=True, is_slow=True)


class _WrongListingError(Exception):
    """Says what it lists that cannot be."""


def _listed(repository: str, document: Any) -> Listing:  # noqa: ANN401 - the hub can answer anything
    """The listing that a hub's answer is, each value of the type and in the bounds that the manifest has."""
    if not isinstance(document, dict) or not isinstance(document.get("siblings"), list):
        raise _WrongListingError("no files")
    if not isinstance(commit := document.get("sha"), str) or not is_hex(commit, 40):
        raise _WrongListingError(f"the commit {reprlib.repr(commit)}")
    files = tuple(map(_remote, document["siblings"]))
    if len({file.path for file in files}) < len(files):
        raise _WrongListingError("a file twice")
    return Listing(repository, commit, files)


def _remote(sibling: Any) -> RemoteFile:  # noqa: ANN401 - the same
    sibling = sibling if isinstance(sibling, dict) else {}
    path, size, blob, large = (sibling.get(field) for field in ("rfilename", "size", "blobId", "lfs"))
    if not isinstance(path, str) or not is_inside(path):
        raise _WrongListingError(f"the path {reprlib.repr(path)}")
    if type(size) is not int or not 0 <= size <= MOST_BYTES:
        raise _WrongListingError(f"the size {reprlib.repr(size)} for {path}")
    if not isinstance(blob, str) or not is_hex(blob, 40):
        raise _WrongListingError(f"the blob {reprlib.repr(blob)} for {path}")
    if not large:
        return RemoteFile(path, size, blob, None)
    sha256 = large.get("sha256") if isinstance(large, dict) else None
    if not isinstance(sha256, str) or not is_sha256(sha256):
        raise _WrongListingError(f"the sha256 {reprlib.repr(sha256)} for {path}")
    return RemoteFile(path, size, blob, sha256)
