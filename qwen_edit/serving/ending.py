"""How a serving process ends: at a signal, and without waiting for a thread that hangs."""

import multiprocessing
import multiprocessing.util
import os
import signal
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from qwen_edit.log import flush, log

FINALIZERS = "_run_finalizers"
"""Of `multiprocessing.util`: what an ordinary end of the process runs for its locks."""

FLUSH_S = 2.0
"""Seconds that an end waits for the log to be read."""


def end_at_signals() -> None:
    """Let a signal end the process from now on, also as process 1, for which the system has no default."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)


def leave(status: int) -> NoReturn:
    """End the process without waiting for a thread that hangs."""
    flush(FLUSH_S)
    for child in multiprocessing.active_children():
        child.terminate()
    with suppress(AttributeError):  # else a process that watches over the locks says that they are left behind
        getattr(multiprocessing.util, FINALIZERS)()
    os._exit(status)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """Nothing is owed yet: end as a process that has no handler does."""
    log("ended by a signal", signal=signal.Signals(number).name)
    leave(128 + number)
