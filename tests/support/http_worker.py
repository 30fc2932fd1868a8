"""A worker behind HTTP, on a device that waits and fails as prompts say."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from tests.support.loop_worker import LoopWorker, launched
from tests.support.patience import PATIENCE

FAKE = ("-m", "tests.support.fake_device")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class HttpWorker:
    """A process and its address."""

    worker: LoopWorker
    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, document: object = None, method: str | None = None, **headers: str) -> Answer:
        """Ask, with a document as JSON or with bytes as they are; underscores in a header's name are hyphens."""
        body = document if isinstance(document, bytes | None) else json.dumps(document).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and "content-type" not in named:
            named["content-type"] = "application/json"
        request = urllib.request.Request(self.base + path, body, named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Answer(response.status, _lower(response.headers), response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), error.read())

    def final(self, job_id: str) -> dict[str, Any]:
        """The state of a job after its end."""
        state: dict[str, Any] = {"status": "IN_QUEUE"}
        while state["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            state = self.ask(f"/status-sync/{job_id}").json()
        return state


def _lower(headers: Message) -> Mapping[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@contextmanager
def serving(models: Path, folder: Path, *arguments: str, **environ: str) -> Iterator[HttpWorker]:
    """Start a worker that serves HTTP, and wait until it is ready."""
    port = free_port()
    settings = {"QWEN_EDIT_MODE": "http", "PORT": str(port), **environ}
    with launched(models, folder, *(arguments or FAKE), **settings) as worker:
        worker.wait_for_event("warm")
        yield HttpWorker(worker, port)


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
