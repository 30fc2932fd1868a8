"""How a file of the model directory is opened: a regular one alone, and what is read whole up to a size. No torch here.

A model directory may come from anywhere. A pipe in it would be waited for without end, and a device read without end.
"""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

MOST_BYTES = 16 << 20
"""The most that a file which is read whole may have, weights aside: six times the largest that is published, a
vocabulary of 2.8 MB. JSON of this size takes less than a gigabyte once it is parsed."""


def open_file(path: Path) -> FileIO:
    """Open a regular file for reading, unbuffered; a link to one will do. A pipe in its place is refused at once.

    Raises:
        OSError: it is not there, is something else or may not be read.
    """
    file = open(path, "rb", buffering=0, opener=_open_at_once)  # noqa: SIM115 - it is the caller's to close
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file.

    Args:
        most: how many it may have.

    Raises:
        OSError: as for `open_file`, or the file has more bytes.
    """
    with open_file(path) as file:
        content = bytearray()
        # The size that the system tells is not enough: the file can grow, and some have none to tell.
        while chunk := file.read(most + 1 - len(content)):
            content += chunk
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes")
    return bytes(content)


def file_size(path: Path) -> int | None:
    """The bytes of a regular file, or None where there is no such file, whatever the system says against it."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
