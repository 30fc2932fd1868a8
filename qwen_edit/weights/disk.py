"""Reading large files: into memory that is there already, and into the page cache ahead of need.

No torch here: the disk has minutes of work to do, and does not wait for an import.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from qwen_edit.store.files import open_file

_STEP = 1 << 20
"""Bytes asked for at once: Linux cuts a longer advice short, to what one request to the disk may have."""

_LOWEST_PRIORITY = 19


class Identity(NamedTuple):
    """What changes when a file is written to, or another takes its place. Times in nanoseconds."""

    device: int
    inode: int
    bytes: int
    modified: int

    @classmethod
    def of(cls, file: Path | int) -> Self:
        """The identity of what a path leads to, or of an open descriptor.

        Raises:
            OSError: there is no such file.
        """
        status = os.stat(file)  # noqa: PTH116 - a Path has no stat for a descriptor
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def fill(descriptor: int, views: Sequence[memoryview], offset: int) -> int:
    """Read from `offset` into one view after the other, without the GIL, until they are full or the file ends.

    Returns:
        The bytes that were read.

    Raises:
        OSError: the disk cannot be read.
    """
    done = 0
    rest = list(views)
    while rest and (count := os.preadv(descriptor, rest, offset + done)):
        done += count
        rest = _after(rest, count)
    return done


def _after(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the views behind their first `count` bytes."""
    rest = []
    for view in views:
        if len(view) > count:
            rest.append(view[count:])
        count = max(count - len(view), 0)
    return rest


class Prefetch:
    """Asks for files to be read into the page cache, in the background, with or without low priority.

    It is a hint: a file that cannot be read is left to those who need it, and can say so better.
    """

    def __init__(self, files: Iterable[Path], *, gently: bool = False) -> None:
        """Begin with the first file.

        Args:
            gently: give way to everything else that wants the processor or, where the scheduler knows priorities, the
                disk.
        """
        self._files = files
        self._gently = gently
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking. No thread is left."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        if self._gently:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        for path in self._files:
            with suppress(OSError), open_file(path) as file:
                for offset in range(0, os.fstat(file.fileno()).st_size, _STEP):
                    if self._stop.is_set():
                        return
                    os.posix_fadvise(file.fileno(), offset, _STEP, os.POSIX_FADV_WILLNEED)
