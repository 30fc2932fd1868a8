"""What the system is told of memory: `madvise`, which Python has for its own maps alone."""

import ctypes
import os
from enum import IntEnum

_libc = ctypes.CDLL(None, use_errno=True)


class Advice(IntEnum):
    """Linux's numbers, of `asm-generic/mman-common.h`."""

    DONTFORK = 10
    """A child process gets none of these pages."""

    DOFORK = 11

    POPULATE_READ = 22
    """Linux 5.14: read the pages of a map, and where touching one would raise SIGBUS give an error instead."""


def advise(address: int, size: int, advice: Advice) -> None:
    """Give the system advice about memory, without the GIL.

    Args:
        address: where it begins, in bytes; a page's address.
        size: bytes.

    Raises:
        OSError: the system does not take it, or cannot read the pages.
    """
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), int(advice)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
