"""Where tensors of a file go in one flat buffer, and the reads that bring them there. No torch here."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwen_edit.weights.header import TensorEntry

ALIGNMENT = 64
"""Bytes. A tensor begins at a multiple of it, as from PyTorch's own CPU allocator; vector loads on a GPU need 16."""

WINDOW = 2
"""Groups of a file that are in memory at once: one is being used while the next one is read."""

_MAX_PIECES = os.sysconf("SC_IOV_MAX")


@dataclass(frozen=True)
class Read:
    """One read: `bytes` from `offset` in the file, to be spread over `pieces` of the buffer in turn."""

    offset: int
    bytes: int
    pieces: tuple[slice, ...]


@dataclass(frozen=True)
class Placement:
    """A buffer of `bytes`; where each tensor begins in it; the reads, in file order."""

    bytes: int
    starts: Mapping[str, int]
    reads: tuple[Read, ...]


def place(tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> Placement:
    """Lay out tensors of a file in file order, aligned, and cut their part of it into reads of `bytes_a_read` at most.

    Most tensors are a multiple of the alignment long, so that long stretches of the file stay whole. Where one is not,
    a gap follows it in the buffer and the next piece begins; where the file goes on with a tensor that is not asked
    for, so does the next read.

    Args:
        tensors: some or all of a header's, in its order.
    """
    starts: dict[str, int] = {}
    end = 0
    for name, entry in tensors.items():
        starts[name] = _aligned(end)
        end = starts[name] + entry.bytes
    return Placement(_aligned(end), starts, _reads(tensors, starts, bytes_a_read))


def in_place(tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> Placement:
    """Leave tensors where they lie in their file, which the buffer then is: the reads bring what there is of them.

    Args:
        tensors: some or all of a header's, in its order.
    """
    starts = {name: entry.offset for name, entry in tensors.items()}
    end = max((entry.offset + entry.bytes for entry in tensors.values()), default=0)
    return Placement(end, starts, _reads(tensors, starts, bytes_a_read))


def _reads(tensors: Mapping[str, TensorEntry], starts: Mapping[str, int], bytes_a_read: int) -> tuple[Read, ...]:
    runs: list[_Run] = []
    for name, entry in tensors.items():
        if not runs or runs[-1].end != entry.offset:
            runs.append(_Run(entry.offset))
        runs[-1].append(slice(starts[name], starts[name] + entry.bytes))
    return tuple(read for run in runs for read in _reads_of(_cut(run.pieces, bytes_a_read), run.offset, bytes_a_read))


class _Run:
    """A stretch of the file, and the pieces of the buffer that it fills in turn."""

    def __init__(self, offset: int) -> None:
        self.offset = self.end = offset
        self.pieces: list[slice] = []

    def append(self, piece: slice) -> None:
        self.end += piece.stop - piece.start
        if self.pieces and self.pieces[-1].stop == piece.start:
            self.pieces[-1] = slice(self.pieces[-1].start, piece.stop)
        else:
            self.pieces.append(piece)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _cut(pieces: Iterable[slice], bytes_a_read: int) -> Iterator[slice]:
    """The same bytes in the same order, none of them across the end of a read."""
    room = bytes_a_read
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            yield slice(start, stop)
            room = room - (stop - start) or bytes_a_read
            start = stop


def _reads_of(pieces: Iterable[slice], offset: int, bytes_a_read: int) -> Iterator[Read]:
    """Group pieces into reads: as many as one read takes."""
    group: list[slice] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += piece.stop - piece.start
        if size == bytes_a_read or len(group) == _MAX_PIECES:
            yield Read(offset, size, tuple(group))
            offset, group, size = offset + size, [], 0
    if group:
        yield Read(offset, size, tuple(group))
