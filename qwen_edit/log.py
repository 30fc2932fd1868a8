"""One JSON line for each event, on stdout. Not `logging`: RunPod's SDK configures that for itself as it is imported."""

import json
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Literal

Level = Literal["info", "warning", "error"]

MOST_LINES = 10_000
"""Lines that wait where nobody reads stdout; further ones are counted and dropped."""

_lines: "queue.Queue[str] | None" = None
_dropped = 0
_counting = threading.Lock()


def log(event: str, level: Level = "info", **fields: object) -> None:
    """Write one event. No prompt and no base64 belongs in the fields."""
    global _dropped
    text = _line(event, level, **fields)
    if _lines is None:
        _write(text)
        return
    try:
        _lines.put_nowait(text)
    except queue.Full:
        with _counting:
            _dropped += 1


def write_beside() -> None:
    """Write from a thread of its own from now on: a stdout that nobody reads stops that thread alone."""
    global _lines
    if _lines is None:
        _lines = queue.Queue(MOST_LINES)
        threading.Thread(target=_write_lines, args=(_lines,), name="log", daemon=True).start()


def flush(seconds: float) -> None:
    """Wait until all lines are written, but not longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while _lines is not None and _lines.unfinished_tasks and time.monotonic() < deadline:
        time.sleep(0.01)


def _write_lines(lines: "queue.Queue[str]") -> None:
    global _dropped
    while True:
        text = lines.get()
        _write(text)
        with _counting:
            dropped, _dropped = _dropped, 0
        if dropped:  # at once: where the others wait, this line would be dropped as well
            _write(_line("log lines dropped", "warning", lines=dropped))
        lines.task_done()


def _line(event: str, level: Level, **fields: object) -> str:
    line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "level": level, "event": event, **fields}
    return json.dumps(line, default=str) + "\n"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
