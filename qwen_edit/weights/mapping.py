"""Files in the CPU's memory without a copy: mapped, and read through the map before anybody touches it."""

import errno
import mmap
import os
import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from qwen_edit.weights.advice import Advice, advise
from qwen_edit.weights.header import TensorEntry
from qwen_edit.weights.placement import Placement, Read, in_place


class Mapped:
    """The CPU: each file is mapped, and read into the page cache and from there into the map.

    Nothing is copied, and no page has to be found and cleared for a copy, which takes longer than the disk does: see
    `bench/start/reading.py`. Two processes share the pages, and the system may drop and read them again as it needs
    memory.

    A map whose file is cut short kills the process that touches it behind the end. While it is read nobody does: what
    is missing is an error. Afterwards a file may be replaced or removed, as the builder does, but not be written to.
    """

    def land(self, descriptor: int, tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> tuple[Placement, Tensor]:
        placement = in_place(tensors, bytes_a_read)
        if not placement.bytes:
            return placement, torch.empty(0, dtype=torch.uint8)
        try:
            # Writable, or PyTorch warns; what were written would stay in this process.
            memory = mmap.mmap(descriptor, placement.bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        except ValueError as error:
            raise OSError(errno.ENODATA, f"it ends before byte {placement.bytes}") from error
        return placement, torch.frombuffer(memory, dtype=torch.uint8)

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        start = span.offset - span.offset % mmap.PAGESIZE
        try:
            _populate(buffer.data_ptr() + start, span.offset + span.bytes - start)
        except OSError as error:
            # Both a file that is too short and a disk that cannot be read would be SIGBUS.
            if error.errno != errno.EFAULT or os.fstat(descriptor).st_size >= span.offset + span.bytes:
                raise
        return max(0, min(span.bytes, os.fstat(descriptor).st_size - span.offset))

    def join(self) -> None:
        """Memory that a thread read is there for all."""

    def close(self) -> None:
        """Nothing is held."""


def _populate(address: int, size: int) -> None:
    """Bring the pages of a map into memory, from a page's address on, without the GIL."""
    advise(address, size, Advice.POPULATE_READ)


def _can_populate() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    page = torch.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), dtype=torch.uint8)
    try:
        _populate(page.data_ptr(), mmap.PAGESIZE)
    except OSError:
        return False
    return True


CAN_MAP = _can_populate()
"""Whether the system reads a map without the danger of touching it: an older Linux does not, nor do sandboxes that
leave such advice out."""
