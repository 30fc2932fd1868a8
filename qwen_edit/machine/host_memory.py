"""The host's memory: what there is of it, whether that is enough, and giving back what the C allocator keeps."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from qwen_edit.errors import ModelUnavailable

HEADROOM_BYTES = 1_200_000_000
"""What a process takes beside the weights. Measured on the CPU, of an edit at 1 megapixel with weights of a few MB."""


class _Controller(NamedTuple):
    """Where a version of Linux's control groups says how much memory a group may take and takes.

    `cached` are lines of `memory.stat`: pages of files, which count as taken and are dropped when they are in the way.
    """

    folders: tuple[str, ...]
    limit: str
    taken: str
    cached: tuple[str, str]


_VERSION_1 = _Controller(
    ("sys/fs/cgroup/memory",),
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_VERSION_2 = _Controller(
    ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "memory.max", "memory.current", ("active_file", "inactive_file")
)


def available_bytes(root: Path = Path("/")) -> int | None:
    """What a process can still take before the system ends it: the least that the machine or a group it is in has.

    Args:
        root: what `proc` and `sys` lie below.

    Returns:
        Bytes, or None where the system does not say.
    """
    return min((size for size in (_of_machine(root), *_of_groups(root)) if size is not None), default=None)


def is_enough(need: int, available: int | None) -> bool:
    """Whether so many bytes of weights fit, beside which the process needs `HEADROOM_BYTES`. Unknown is enough."""
    return not need or available is None or need + HEADROOM_BYTES <= available


def require_enough(need: int, available: int | None, use: str, way_out: str) -> None:
    """Check that weights fit the host's memory, before any of them is read: the system gives no reason when it ends us.

    Args:
        need: their bytes.
        available: see `available_bytes`.
        use: what of the model it is, in words that "take 28.1 GB" can follow.
        way_out: what else could be done.

    Raises:
        ModelUnavailable: they do not.
    """
    if available is not None and not is_enough(need, available):
        raise ModelUnavailable(
            f"{use} take {_gb(need)} of the host's memory, and the process {_gb(HEADROOM_BYTES)} beside them, "
            f"of which {_gb(available)} are available; {way_out}"
        )


def _of_machine(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _of_groups(root: Path) -> Iterator[int | None]:
    """What each group that this process is in has left: its own, and all above it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            version = _VERSION_1 if controllers else _VERSION_2
            for folder in version.folders:
                # A container may see its own group as the root, and the path of a group that is none of its business.
                own = Path(path.lstrip("/"))
                yield from (_left(root / folder / group, version) for group in (own, *own.parents))


def _left(group: Path, version: _Controller) -> int | None:
    limit, taken = _text(group / version.limit).strip(), _text(group / version.taken).strip()
    if not (limit.isdecimal() and taken.isdecimal()):  # no such group, or "max"
        return None
    statistics = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines())
    return int(limit) - int(taken) + sum(int(statistics.get(name, 0)) for name in version.cached)


def _text(path: Path) -> str:
    """A file's text, or none where it is not there or may not be read."""
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def resident_bytes() -> int:
    """This process's memory that is in RAM."""
    pages = _text(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _trimmer() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None with other C libraries, which give memory back by themselves."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


_TRIM = _trimmer()


def release_free_memory() -> None:
    """Give the system what the allocator keeps free.

    glibc keeps freed blocks of up to 32 MB, a heap for each thread. On the CPU an edit leaves hundreds of megabytes
    there, more or less depending on which thread had which tensor: a worker would look as if it leaked.
    """
    if _TRIM is not None:
        _TRIM(0)
