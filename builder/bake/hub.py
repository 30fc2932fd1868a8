"""The model hub, through its own client: what a repository holds at a commit, and the bytes of one file."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in its __all__

from builder.bake.errors import HubError, StoppedError
from builder.bake.hub_errors import explained

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long to bear with the hub: `attempts` in a row that brought nothing, `wait` seconds before the second.

    The wait doubles up to `longest`. `timeout` is the longest silence on a connection, in seconds.
    """

    attempts: int = 6
    wait: float = 1.0
    longest: float = 30.0
    timeout: float = constants.HF_HUB_DOWNLOAD_TIMEOUT

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
        # Ranges and sizes count the file's own bytes, so no compression on the way.
        headers = {**build_hf_headers(token=self.token), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with (
            explained(f"{path} of {listing.repository}", self.endpoint),
            get_session().stream("GET", url, headers=headers, timeout=self.patience.timeout) as response,
        ):
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            offset = start if response.status_code == 206 else 0
            for chunk in response.iter_raw():
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
                attempt = 2 if progressed() else attempt + 1
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
        with explained(f"{repository} at {revision}", self.endpoint):
            api = HfApi(endpoint=self.endpoint, token=self.token)
            info = api.model_info(repository, revision=revision, files_metadata=True, timeout=self.patience.timeout)
            if info.sha is None or info.siblings is None:
                raise ValueError(repository)
            return Listing(repository, info.sha, tuple(_remote(sibling) for sibling in info.siblings))


def _remote(sibling: RepoSibling) -> RemoteFile:
    path = sibling.rfilename
    inside = path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(path.split("/"))
    if sibling.size is None or sibling.blob_id is None or not inside:
        raise ValueError(path)
    return RemoteFile(path, sibling.size, sibling.blob_id, sibling.lfs.sha256 if sibling.lfs else None)
