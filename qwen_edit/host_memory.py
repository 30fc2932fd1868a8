"""The host's memory that the C allocator keeps after it was freed."""

import ctypes
from collections.abc import Callable


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
