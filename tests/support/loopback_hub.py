"""A model hub on loopback: model info, and resolve, with a redirect to a second host for large files.

Faults are switched on by path: the next answers for that path are changed on their way out.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.loopback import Handler, Loopback
from tests.support.patience import PATIENCE

CHUNK = 1 << 16
INFO = "info"
"""The path of the model info, for faults and counts."""


@dataclass(frozen=True)
class Reply:
    """An answer about to be sent.

    `cut` closes the connection after so many bytes; all chunks but the first wait for `gate`.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    gate: threading.Event | None = None


Fault = Callable[[Reply], Reply]


def cut(share: float) -> Fault:
    """The connection breaks after a share of the body."""
    return lambda reply: replace(reply, cut=int(len(reply.body) * share))


def corrupted(reply: Reply) -> Reply:
    """One bit in the middle is flipped."""
    body = bytearray(reply.body)
    body[len(body) // 2] ^= 1
    return replace(reply, body=bytes(body))


def shortened(reply: Reply) -> Reply:
    """The last bytes are not there, and the headers say nothing of them."""
    return replace(reply, body=reply.body[:-7])


def lengthened(reply: Reply) -> Reply:
    """There are bytes too many."""
    return replace(reply, body=reply.body + b"surplus")


def refused(status: int, code: str = "", message: str = "", **headers: str) -> Fault:
    """An error of the hub, with its own error headers."""
    errors = {"X-Error-Code": code, "X-Error-Message": message}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Reply(status, b"{}", {**{name: value for name, value in errors.items() if value}, **named})


def held(gate: threading.Event) -> Fault:
    """The answer comes once the gate is open."""
    return lambda reply: reply if gate.wait(PATIENCE) else Reply(503)


def held_in_the_middle(gate: threading.Event) -> Fault:
    """The first chunk comes, and the others once the gate is open."""
    return lambda reply: replace(reply, gate=gate)


def not_json(_: Reply) -> Reply:
    """The page of some other server."""
    return Reply(200, b"<html>Sign in</html>", {"Content-Type": "text/html"})


@dataclass
class Repository:
    """Files by path, at one commit. Weights are large files, told by sha256; the others by git's blob id alone."""

    files: dict[str, bytes]
    commit: str
    claimed: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing gives in place of the true ones."""
    _digests: dict[str, tuple[bytes, str]] = field(default_factory=dict, repr=False)

    def info(self) -> dict[str, Any]:
        return {
            "id": "x/y",
            "sha": self.commit,
            "siblings": [self._sibling(path) for path in self.files],
        }

    def digest(self, path: str) -> str:
        """The sha256 of a file, counted once for each content."""
        data = self.files[path]
        counted = self._digests.get(path)
        if counted is None or counted[0] is not data:
            counted = self._digests[path] = (data, hashlib.sha256(data).hexdigest())
        return counted[1]

    def _sibling(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        size = self.claimed.get(path, len(data))
        entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": _blob(data)}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"size": size, "sha256": self.digest(path), "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    host: str
    path: str
    range: str | None
    token: str | None


class LoopbackHub(Loopback):
    """Serves `repositories` by name; both hosts of it are this process."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(_handler(self))
        self.repositories = repositories
        self.seen: list[Seen] = []
        self.revisions: dict[str, str] = {}
        """Of each repository the revision that was asked for last."""
        self.ranges = True
        self._faults: dict[str, list[Fault]] = {}
        self._news = threading.Condition()
        self._left: int | None = None
        self._is_held_up = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self.port}"

    def fault(self, path: str, *faults: Fault, times: int = 1) -> None:
        """Change the next `times` answers for a file of any repository by each of `faults`, in turn."""
        self._faults.setdefault(path, []).extend(fault for fault in faults for _ in range(times))

    def heal(self) -> None:
        """Take all faults back and forget what was seen."""
        self._faults.clear()
        self.seen.clear()

    def fetched(self) -> list[str]:
        """The files that were asked for, in order."""
        return [seen.path for seen in self.seen if seen.path != INFO]

    def asked_for(self, path: str) -> None:
        """Wait until a file has been asked for.

        Raises:
            TimeoutError: nobody does.
        """
        self._wait(lambda: any(seen.path == path for seen in self.seen), f"ask for {path}")

    def stop_after(self, chunks: int) -> None:
        """Send so many more chunks, of any files, and then nothing until `go_on`."""
        with self._news:
            self._left, self._is_held_up = chunks, False

    def go_on(self) -> None:
        """Send everything again."""
        with self._news:
            self._left = None
            self._news.notify_all()

    def held_up(self) -> None:
        """Wait until somebody waits for a chunk behind those of `stop_after`.

        Raises:
            TimeoutError: nobody does.
        """
        self._wait(lambda: self._is_held_up, "wait for a chunk")

    def pass_chunk(self) -> None:
        """Wait for the turn of a chunk."""
        with self._news:
            if self._left == 0:
                self._is_held_up = True
                self._news.notify_all()
            self._news.wait_for(lambda: self._left != 0, PATIENCE)
            if self._left:
                self._left -= 1

    def _wait(self, happened: Callable[[], bool], what: str) -> None:
        with self._news:
            if not self._news.wait_for(happened, PATIENCE):
                raise TimeoutError(f"nobody came to {what} within {PATIENCE} seconds")

    def answer(self, host: str, url: str, headers: Message) -> Reply:
        path, reply = self._route(urlsplit(unquote(url)).path)
        if reply.status != 302:
            with self._news:
                self.seen.append(Seen(host, path, headers.get("Range"), headers.get("Authorization")))
                self._news.notify_all()
            if faults := self._faults.get(path):
                reply = faults.pop(0)(reply)
        return self._ranged(reply, headers.get("Range"))

    def _route(self, url: str) -> tuple[str, Reply]:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", url):
            return INFO, self._info(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url):
            return match[3], self._resolve(match[1], match[3])
        match = re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", url)
        assert match, url
        return match[2], Reply(200, self.repositories[match[1]].files[match[2]])

    def _info(self, name: str, revision: str) -> Reply:
        self.revisions[name] = revision
        repository = self.repositories.get(name)
        if repository is None:
            return refused(404, "RepoNotFound")(Reply(404))
        if revision not in ("main", repository.commit):
            return refused(404, "RevisionNotFound")(Reply(404))
        return Reply(200, json.dumps(repository.info()).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, path: str) -> Reply:
        repository = self.repositories[name]
        data = repository.files.get(path)
        if data is None:
            return refused(404, "EntryNotFound")(Reply(404))
        headers = {"X-Repo-Commit": repository.commit, "X-Linked-Size": str(len(data))}
        if path.endswith(".safetensors"):
            digest = repository.digest(path)
            return Reply(
                302, headers={**headers, "X-Linked-ETag": f'"{digest}"', "Location": f"{self.cdn}/cdn/{name}/{path}"}
            )
        return Reply(200, data, {**headers, "ETag": f'"{_blob(data)}"'})

    def _ranged(self, reply: Reply, wanted: str | None) -> Reply:
        if reply.status != 200 or wanted is None or not self.ranges:
            return reply
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(reply.body):
            return Reply(416, headers={"Content-Range": f"bytes */{len(reply.body)}"})
        span = f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}"
        return replace(reply, status=206, body=reply.body[start:], headers={**reply.headers, "Content-Range": span})


def _handler(hub: LoopbackHub) -> type[Handler]:
    class HubHandler(Handler):
        def answer(self) -> None:
            host = (self.headers["Host"] or "").partition(":")[0]
            reply = hub.answer(host, self.path, self.headers)
            self.send_head(reply.status, reply.headers, len(reply.body))
            if self.command == "GET":
                self._write(reply)

        def _write(self, reply: Reply) -> None:
            body = memoryview(reply.body)[: reply.cut]
            for start in range(0, len(body), CHUNK):
                if start and reply.gate is not None:
                    reply.gate.wait(PATIENCE)
                hub.pass_chunk()
                self.wfile.write(body[start : start + CHUNK])
            self.close_connection = reply.cut is not None

    return HubHandler


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
