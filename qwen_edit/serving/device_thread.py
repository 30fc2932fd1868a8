"""The one thread that owns the device, and the watch over it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

from qwen_edit.log import log

T = TypeVar("T")


class LostDevice(Exception):
    """The device no longer answers: only a new process mends that."""


class LeftUndone(LostDevice):
    """It was lost by somebody else, before this work was done."""


@dataclass(frozen=True)
class Patience:
    """Seconds that the device may keep silent.

    `stop`: after an edit was told to stop. `least`: between two signs of life of an edit, or `times` the longest
    silence so far, whichever is more. `first`: the same before any edit has ended, when kernels are chosen and
    blocks compiled. `close`: at the end of the process. `look`: between two looks at the clock.
    """

    stop: float = 60.0
    least: float = 120.0
    times: float = 20.0
    first: float = 900.0
    close: float = 10.0
    look: float = 1.0


class _Work(Generic[T]):
    def __init__(self, do: Callable[[], T]) -> None:
        self.do = do
        self.future: Future[T] = Future()


class DeviceThread:
    """Does work in order, on a thread that an ending process does not wait for.

    Work that is watched gives signs of life. Where they stop coming, or where stopped work does not end, the device is
    lost, as where work raises `LostDevice`: no other work is begun, and `on_lost` is called once.
    """

    def __init__(self, on_lost: Callable[[], None], patience: Patience | None = None) -> None:
        self._on_lost = on_lost
        self._patience = patience or Patience()
        self._queue: SimpleQueue[_Work[object] | None] = SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._seen: float | None = None  # the last sign of life of what is watched
        self._stopped: float | None = None  # when that was told to stop
        self._longest = 0.0
        self._has_ended = False
        self.is_lost = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._has_begun = False

    def submit(self, do: Callable[[], T]) -> "Future[T]":
        """Do something in its turn.

        Raises:
            RuntimeError: the thread is closed, or the device is lost.
        """
        if self._closed.is_set() or self.is_lost:
            raise RuntimeError("the device thread takes no more work")
        self._begin_once()  # not before: a process that only imports the worker has no use for threads
        work = _Work(do)
        self._queue.put(work)  # type: ignore[arg-type]  # a queue of work of any kind
        return work.future

    def begin(self) -> None:
        """Watch what this thread does from now on. On the device thread, as `end`."""
        with self._lock:
            self._seen, self._stopped = time.monotonic(), None

    def alive(self) -> None:
        """A sign of life. From any thread."""
        with self._lock:
            now = time.monotonic()
            if self._seen is not None:
                self._longest = max(self._longest, now - self._seen)
            self._seen = now

    def end(self) -> None:
        """What was watched has ended."""
        self.alive()
        with self._lock:
            self._seen, self._stopped, self._has_ended = None, None, True

    def stopped(self) -> None:
        """What is watched was told to stop. From any thread."""
        with self._lock:
            if self._seen is not None and self._stopped is None:
                self._stopped = time.monotonic()

    def lose(self, reason: str) -> None:
        """Begin nothing more: the device does not answer. From any thread."""
        with self._lock:
            if self.is_lost:
                return
            self.is_lost = True
        log("device lost", "error", reason=reason)
        self._on_lost()

    def close(self) -> bool:
        """Begin nothing more, and wait a while for what is under way. Returns whether it has ended."""
        self._closed.set()
        self._queue.put(None)
        if self._has_begun and not self.is_lost:
            self._thread.join(self._patience.close)
        return not self._thread.is_alive()

    def _begin_once(self) -> None:
        with self._lock:
            if self._has_begun:
                return
            self._has_begun = True
        self._thread.start()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            if self._closed.is_set() or self.is_lost:
                work.future.cancel()
            elif work.future.set_running_or_notify_cancel():
                try:
                    work.future.set_result(work.do())
                except BaseException as error:  # it is for whoever waits, a SystemExit too
                    work.future.set_exception(error)
                    if isinstance(error, LostDevice):  # after whose work it was has heard of it
                        self.lose(str(error))

    def _watch(self) -> None:
        while not self._closed.wait(self._patience.look) and not self.is_lost:
            if reason := self._silence():
                self.lose(reason)

    def _silence(self) -> str | None:
        patience = self._patience
        with self._lock:
            if self._seen is None:
                return None
            now = time.monotonic()
            if self._stopped is not None and now - self._stopped > patience.stop:
                return f"an edit went on for {patience.stop:g} s after its stop"
            allowed = max(patience.least, patience.times * self._longest) if self._has_ended else patience.first
            return f"an edit gave no sign of life for {allowed:g} s" if now - self._seen > allowed else None
