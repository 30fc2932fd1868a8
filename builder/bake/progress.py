"""How far a long read or download is: a bar on a terminal, now and then a line in a log."""

import sys
import threading
import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from tqdm import tqdm

from builder.bake.printed import amount, duration, printable

EVERY = 15.0
"""Seconds between two lines in a log."""


class Progress(Protocol):
    """Counts bytes towards a total; safe to use from many threads. `say` prints a line beside it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def advance(self, count: int) -> None: ...
    def say(self, line: str) -> None: ...


class Bar:
    """A bar with speed and time left."""

    def __init__(self, what: str, total: int, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, file=stream, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        with self._lock:
            self._bar.update(count)

    def say(self, line: str) -> None:
        with self._lock:
            tqdm.write(printable(line), file=self._stream)


class Lines:
    """A line with speed and time left every `every` seconds."""

    def __init__(self, what: str, total: int, stream: TextIO, every: float = EVERY) -> None:
        self._what, self._total, self._stream, self._every = what, total, stream, every
        self._lock = threading.Lock()
        self._start = self._shown = time.monotonic()
        self._done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._shown >= self._every:
                self._shown = now
                self._print(self._line(now - self._start))

    def say(self, line: str) -> None:
        with self._lock:
            self._print(line)

    def _line(self, seconds: float) -> str:
        speed = max(self._done, 1) / max(seconds, 1e-9)
        left = max(self._total - self._done, 0)
        share = f"{self._done / max(self._total, 1):.0%}"
        done = f"{amount(self._done)} of {amount(self._total)} ({share})"
        return f"{self._what}: {done}, {amount(speed)}/s, {duration(left / speed)} left"

    def _print(self, line: str) -> None:
        print(printable(line), file=self._stream, flush=True)


def show(what: str, total: int, stream: TextIO | None = None) -> Progress:
    """Progress of `total` bytes on `stream` (standard error): a bar on a terminal, lines elsewhere."""
    stream = stream or sys.stderr
    return Bar(what, total, stream) if stream.isatty() else Lines(what, total, stream)
