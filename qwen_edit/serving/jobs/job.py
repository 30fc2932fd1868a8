"""One job of a door that keeps jobs: what was asked, how far it is, and how it ended."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen_edit.contract.request import EditRequest
from qwen_edit.contract.response import EditResponse
from qwen_edit.edit.hooks import Step
from qwen_edit.errors import EditError, InternalError

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]
"""RunPod's words."""

MOST_UPDATES = 64
"""Updates that wait for a reader; older ones are of no use to anybody."""

RUN_KEPT_S, SYNC_KEPT_S = 30 * 60.0, 60.0
"""How long RunPod keeps the result of a job, and of one whose caller waits for it (its documentation of job states)."""

EXECUTION_S, TTL_S = 600.0, 24 * 3600.0
"""RunPod's defaults: the longest run of a job, and its longest life before its end (its documentation of policies)."""


def kept_for(key: str | None) -> float:
    """Seconds for which the result of a job is kept whose caller waits for it: without a key nobody can ask again."""
    return 0.0 if key is None else SYNC_KEPT_S


@dataclass(frozen=True)
class Policy:
    """Seconds that a job may run, and seconds from its submission to its end."""

    execution_s: float = EXECUTION_S
    ttl_s: float = TTL_S


@dataclass(frozen=True)
class Order:
    """What a door submits.

    `answer` makes the door's output of a response. `with_preview` chooses the steps whose update has a
    picture; None leaves that to the request.
    `webhook` is told of the end. `key` is the caller's own name for the job: a second order with it finds the first.
    `keeps_files` keeps the files of the result beside the response.
    """

    door: str
    request: EditRequest = field(repr=False)
    answer: Callable[[EditResponse], Mapping[str, Any]] = field(default=EditResponse.to_json, repr=False)
    limit: int | None = None
    kept_s: float = SYNC_KEPT_S
    policy: Policy = Policy()
    with_preview: Callable[[Step], bool] | None = None
    webhook: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    keeps_files: bool = False


@dataclass(frozen=True)
class Result:
    """What an edit left: the response, the door's output made of it, and its files where they were asked for."""

    response: EditResponse
    output: Mapping[str, Any] = field(repr=False)
    files: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def size(self) -> int:
        """Bytes, of the pictures alone."""
        return sum(map(len, self.response.images or ())) + sum(map(len, self.files))


class Job:
    """A job's state. It is changed on the event loop alone, by `Jobs`.

    Times are seconds of the clock that `Jobs` has. `listeners` counts the callers who wait for it.
    """

    def __init__(self, job_id: str, order: Order | None, now: float) -> None:
        self.id = job_id
        self.order = order
        self.door = order.door if order else "run"
        self.key = order.key if order else None
        self.webhook = order.webhook if order else None
        self.status: Status = "IN_QUEUE"
        self.created = now
        self.started: float | None = None
        self.ended: float | None = None
        self.kept_s = order.kept_s if order else RUN_KEPT_S
        self.result: Result | None = None
        self.error: EditError | None = None
        self.is_let_go = False
        self.listeners = 0
        self.updates: deque[dict[str, Any]] = deque(maxlen=MOST_UPDATES)
        self._changed = asyncio.Event()

    @property
    def is_final(self) -> bool:
        return self.ended is not None

    @property
    def delay_ms(self) -> int | None:
        """Milliseconds in the queue; None while it is there."""
        until = self.ended if self.started is None else self.started
        return None if until is None else round((until - self.created) * 1000)

    @property
    def execution_ms(self) -> int | None:
        """Milliseconds from the queue to the end; None before that."""
        return None if self.started is None or self.ended is None else round((self.ended - self.started) * 1000)

    def begin(self, now: float) -> None:
        """It leaves the queue."""
        self.status, self.started = "IN_PROGRESS", now
        self._tell()

    def hear(self, update: dict[str, Any]) -> None:
        """An update comes from the device."""
        if not self.is_final:
            self.updates.append(update)
            self._tell()

    def end(self, status: Status, now: float, result: Result | None = None, error: EditError | None = None) -> None:
        """It is over. What was asked is kept only where it can be asked again."""
        self.status, self.ended, self.result, self.error = status, now, result, error
        if status not in ("FAILED", "TIMED_OUT"):
            self.order = None
        self._tell()

    def again(self, now: float) -> None:
        """It goes back to the queue, as if it had just come."""
        self.status, self.created, self.started, self.ended, self.error = "IN_QUEUE", now, None, None, None
        self._tell()

    def let_go(self) -> None:
        """Keep the status alone."""
        self.result, self.is_let_go = None, True

    def take_updates(self) -> list[dict[str, Any]]:
        """The updates that nobody has taken yet."""
        taken = list(self.updates)
        self.updates.clear()
        return taken

    def outcome(self) -> Result:
        """What it left, after its end.

        Raises:
            EditError: it left nothing.
        """
        if self.result is None:
            raise self.error or InternalError("the result was let go to make room for later ones")
        return self.result

    async def change(self) -> None:
        """Wait until something happens to it."""
        await self._changed.wait()

    async def end_of(self) -> None:
        """Wait for its end."""
        while not self.is_final:
            await self.change()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
