"""RunPod's control plane on loopback: job-take, job-take-batch, job-done, job-stop and ping, for any number of workers.

Times are seconds of `time.monotonic`, which every process of a machine shares.
"""

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.support.loopback import Handler, Loopback
from tests.support.patience import PATIENCE

API_KEY = "loopback-key"
Found = TypeVar("Found")

Trouble = Literal["reset", "hang", "junk", "wrong", "empty"] | int
"""What becomes of an answer: the connection is reset, or nothing comes; it is no JSON, or JSON of something else; it is
none at once; or it is a status. The question itself is not looked at.
"""


@dataclass(frozen=True)
class Take:
    """A job handed to a worker."""

    job: str
    worker: str
    at: float


@dataclass(frozen=True)
class Post:
    """What a worker posted about a job, and the status that it was answered with."""

    job: str
    worker: str
    at: float
    status: int
    size: int
    document: dict[str, Any]

    @property
    def is_update(self) -> bool:
        """Updates and results come to one address; this word is all that tells them apart."""
        return self.document.get("status") == "IN_PROGRESS"


@dataclass(frozen=True)
class Ping:
    """A heartbeat: its query, and when it came."""

    query: Mapping[str, list[str]]
    at: float

    @property
    def jobs(self) -> list[str]:
        """The jobs that the worker says it has."""
        return ",".join(self.query.get("job_id", [])).split(",")


@dataclass
class ControlPlane(Loopback):
    """One queue and its workers.

    Args:
        limit: bytes of a post; a longer one gets 400 and is forgotten, as the platform does.
        hold: seconds that job-take and job-stop wait for news.
        ignores_updates: whether updates get no answer until their connection is closed.
        trouble: what goes wrong with a question of that verb, such as `job-take`.
        hang: seconds without an answer, after which the connection is reset.
    """

    limit: int | None = None
    hold: float = 1.0
    ignores_updates: bool = False
    trouble: Callable[[str], Trouble | None] = lambda verb: None
    hang: float = PATIENCE
    submitted: dict[str, float] = field(default_factory=dict)
    takes: list[Take] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    pings: list[Ping] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)
    asked: list[tuple[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(_handler(self))
        self._queue: deque[dict[str, Any]] = deque()
        self._stops: dict[str, list[str]] = {}
        self._outages = 0
        self._ignored: list[str] = []
        self._news = threading.Condition()

    def environ(self, worker: str) -> dict[str, str]:
        """What the platform sets for a worker of that name. Its URLs have a query, and the SDK counts on that."""
        root = f"http://127.0.0.1:{self.port}/v2/endpoint"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_ENDPOINT_ID": "endpoint",
            "RUNPOD_POD_ID": worker,
            # A machine for tests has no GPU, no way to 8.8.8.8:53, and any share of its disk free.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, job: str, payload: object) -> str:
        """Queue a job under an id of the caller's choice."""
        with self._news:
            self.submitted[job] = time.monotonic()
            self._queue.append({"id": job, "input": payload})
            self._news.notify_all()
        return job

    def cancel(self, job: str) -> None:
        """What a caller's cancel, or the platform's time-out, does: out of the queue, or word to the worker."""
        with self._news:
            self._queue = deque(queued for queued in self._queue if queued["id"] != job)
            for take in self.takes:
                if take.job == job:
                    self._stops.setdefault(take.worker, []).append(job)
            self._news.notify_all()

    def fail_results(self, times: int) -> None:
        """Answer the next posts with 500."""
        with self._news:
            self._outages = times

    def taken(self, job: str, timeout: float = PATIENCE) -> Take:
        """Wait until a worker has the job."""
        return self._wait(lambda: (take for take in self.takes if take.job == job), f"take {job}", timeout)

    def result(self, job: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for the job's end: `{"output": …}` or `{"error": …}` as it was posted."""
        return self._wait(lambda: iter(self.results(job)), f"finish {job}", timeout).document

    def update(self, job: str, timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait for the job's first update."""
        return self._wait(lambda: iter(self.updates(job)), f"report {job}", timeout).document

    def pinged(self, job: str | None = None, timeout: float = PATIENCE) -> Ping:
        """Wait for a heartbeat: the first that names the job, where one is given."""
        return self._wait(
            lambda: (ping for ping in self.pings if job is None or job in ping.jobs), f"ping for {job}", timeout
        )

    def ignored(self, job: str, timeout: float = PATIENCE) -> None:
        """Wait until an update of the job is on its way and gets no answer."""
        self._wait(lambda: (one for one in self._ignored if one == job), f"report {job}", timeout)

    def given_up(self, job: str, timeout: float = PATIENCE) -> None:
        """Wait until no update of the job waits for an answer any more."""
        self._wait(lambda: iter([job] if job not in self._ignored else []), f"give {job}'s update up", timeout)

    def results(self, job: str) -> list[Post]:
        """Every end of the job that the platform accepted: one, or something is wrong."""
        return [post for post in self.posts if post.job == job and post.status == 200 and not post.is_update]

    def updates(self, job: str) -> list[Post]:
        """The job's updates, in the order of their arrival."""
        return [post for post in self.posts if post.job == job and post.is_update]

    def refused(self, job: str) -> list[Post]:
        """What was posted about the job and lost."""
        return [post for post in self.posts if post.job == job and post.status != 200]

    def answer_get(self, url: str) -> object:
        """The JSON of an answer; None for 204."""
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        verb, worker = parts.path.split("/")[3:5]
        match verb:
            case "job-take":
                return next(iter(self._take(worker, 1)), None)
            case "job-take-batch":
                return self._take(worker, int(query["batch_size"][0])) or None
            case "job-stop":
                return self._stop(worker)
            case "ping":
                self._pinged(Ping(query, time.monotonic()))
                return {}
        raise ValueError(url)

    def answer_post(self, url: str, body: bytes) -> int:
        """The status of an answer."""
        worker, job = urlsplit(url).path.split("/")[4:6]
        document = json.loads(body, parse_constant=_refuse)
        with self._news:
            self._outages -= (outage := self._outages > 0)
            too_long = self.limit is not None and len(body) > self.limit
            status = 500 if outage else 400 if too_long else 200
            self.posts.append(Post(job, worker, time.monotonic(), status, len(body), document))
            self._news.notify_all()
        return status

    @contextmanager
    def ignoring(self, url: str) -> Iterator[None]:
        """Meanwhile an update gets no answer."""
        job = urlsplit(url).path.split("/")[5]
        with self._news:
            self._ignored.append(job)
            self._news.notify_all()
        try:
            yield
        finally:
            with self._news:
                self._ignored.remove(job)
                self._news.notify_all()

    def _take(self, worker: str, most: int) -> list[dict[str, Any]]:
        with self._news:
            self._news.wait_for(lambda: self._queue, self.hold)
            jobs = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self.takes += [Take(job["id"], worker, time.monotonic()) for job in jobs]
            self._news.notify_all()
        return jobs

    def _stop(self, worker: str) -> dict[str, list[str]] | None:
        with self._news:
            self._news.wait_for(lambda: self._stops.get(worker), self.hold)
            jobs = self._stops.pop(worker, [])
        return {"jobsToStop": jobs} if jobs else None

    def _pinged(self, ping: Ping) -> None:
        with self._news:
            self.pings.append(ping)
            self._news.notify_all()

    def _wait(self, look: Callable[[], Iterator[Found]], what: str, timeout: float) -> Found:
        """The first of what is looked for, as soon as there is one."""
        with self._news:
            self._news.wait_for(lambda: any(True for _ in look()), timeout)
            for found in look():
                return found
        raise TimeoutError(f"no worker came to {what} within {timeout} seconds")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _handler(plane: ControlPlane) -> type["PlaneHandler"]:
    return type("Handler", (PlaneHandler,), {"plane": plane})


class PlaneHandler(Handler):
    """Asks its plane, which a class of its own has."""

    plane: ControlPlane

    def answer(self) -> None:
        verb = urlsplit(self.path).path.split("/")[3]
        self.plane.asked.append((verb, time.monotonic()))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        match self.plane.trouble(verb):
            case None:
                self._post(body) if self.command == "POST" else self._get()
            case "reset":
                self._reset()
            case "hang":
                self._is_left(self.plane.hang)
                self._reset()
            case "junk":
                self._send(200, b"<html>come back later</html>")
            case "wrong":
                self._send(200, b'[7, null, {"id": 5}, {}]')
            case "empty":
                self._send(204, b"")
            case status:
                self._send(status, b"{}")

    def _get(self) -> None:
        self.plane.keys.add(self.headers["Authorization"])
        document = self.plane.answer_get(self.path)
        self._send(204 if document is None else 200, b"" if document is None else json.dumps(document).encode())

    def _post(self, body: bytes) -> None:
        if self.plane.ignores_updates and b'"IN_PROGRESS"' in body:
            with self.plane.ignoring(self.path):
                if self._is_left(PATIENCE):
                    self.close_connection = True
                    return
        self._send(self.plane.answer_post(self.path, body), b"{}")

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _is_left(self, seconds: float) -> bool:
        """Whether the client closes the connection within so many seconds."""
        self.connection.settimeout(seconds)
        try:
            return not self.connection.recv(1)
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def _send(self, status: int, body: bytes) -> None:
        self.send_head(status, {"Content-Type": "application/json"}, len(body))
        self.wfile.write(body)
