"""One JSON line for each event, on stdout. Not `logging`: RunPod's SDK configures that for itself as it is imported."""

import io
import json
import os
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Literal, TextIO

Level = Literal["info", "warning", "error"]

MOST_LINES = 10_000
"""Lines that wait where nobody reads stdout; further ones are counted and dropped."""


def log(event: str, level: Level = "info", **fields: object) -> None:
    """Write one event. No prompt and no base64 belongs in the fields."""
    sys.stdout.write(_line(event, level, **fields))
    sys.stdout.flush()


def write_beside() -> None:
    """Write stdout from a thread of its own from now on: one that nobody reads stops that thread alone."""
    if not isinstance(sys.stdout, _Beside):
        sys.stdout = _Beside(sys.stdout)


def flush(seconds: float) -> None:
    """Wait until all lines are written, but not longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while isinstance(sys.stdout, _Beside) and sys.stdout.is_behind() and time.monotonic() < deadline:
        time.sleep(0.01)


class _Beside(io.TextIOBase):
    """In place of stdout: takes lines from any thread, RunPod's SDK's too, and never waits. No line is torn."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(MOST_LINES)
        self._begun = threading.local()
        self._dropped = 0
        self._counting = threading.Lock()
        self._process = os.getpid()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str, /) -> int:
        """Take some text; a line waits for its end."""
        if os.getpid() != self._process:  # a fork has no thread to write: RunPod's SDK forks its heartbeat
            return self._stream.write(text)
        *lines, self._begun.text = (getattr(self._begun, "text", "") + text).split("\n")
        for line in lines:
            self._put(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        """Not waited for; see `flush` of the module."""
        if os.getpid() != self._process:
            self._stream.flush()

    def fileno(self) -> int:
        """The descriptor that is written to."""
        return self._stream.fileno()

    def is_behind(self) -> bool:
        """Whether lines wait."""
        return self._lines.unfinished_tasks > 0

    def _put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            with self._counting:
                self._dropped += 1

    def _run(self) -> None:
        while True:
            self._stream.write(self._lines.get())
            with self._counting:
                dropped, self._dropped = self._dropped, 0
            if dropped:  # at once: where the others wait, this line would be dropped as well
                self._stream.write(_line("log lines dropped", "warning", lines=dropped))
            self._stream.flush()
            self._lines.task_done()


def _line(event: str, level: Level, **fields: object) -> str:
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
    return json.dumps(line, default=str) + "\n"
