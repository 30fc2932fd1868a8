"""Where a file's tensors go in one flat buffer, and the reads that bring them there. No torch here."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qwen_edit.weights.header import Header

ALIGNMENT = 64
"""Bytes. A tensor begins at a multiple of it, as from PyTorch's own CPU allocator; vector loads on a GPU need 16."""

_MAX_PIECES = os.sysconf("SC_IOV_MAX")


@dataclass(frozen=True)
class Block:
    """One read: `bytes` from `offset` in the file, to be spread over `pieces` of the buffer in turn."""

    offset: int
    bytes: int
    pieces: tuple[slice, ...]


@dataclass(frozen=True)
class Placement:
    """A buffer of `bytes`, a multiple of the alignment; where each tensor begins in it; the reads, in file order."""

    bytes: int
    starts: Mapping[str, int]
    blocks: tuple[Block, ...]


def place(header: Header, block_bytes: int) -> Placement:
    """Lay out a file's tensors in file order, aligned, and cut the file into blocks of at most `block_bytes`.

    Most tensors are a multiple of the alignment long, so that long stretches of the file stay whole. Where one is not,
    a gap follows it in the buffer and the next piece begins.
    """
    starts: dict[str, int] = {}
    pieces: list[slice] = []
    end = 0
    for name, entry in header.tensors.items():
        starts[name] = start = _aligned(end)
        if pieces and start == end:
            pieces[-1] = slice(pieces[-1].start, start + entry.bytes)
        else:
            pieces.append(slice(start, start + entry.bytes))
        end = start + entry.bytes
    return Placement(_aligned(end), starts, tuple(_blocks(_cut(pieces, block_bytes), header.start, block_bytes)))


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


def _cut(pieces: Iterable[slice], block_bytes: int) -> Iterator[slice]:
    """The same bytes in the same order, none of them across the end of a block."""
    room = block_bytes
    for piece in pieces:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            yield slice(start, stop)
            room = room - (stop - start) or block_bytes
            start = stop


def _blocks(pieces: Iterable[slice], offset: int, block_bytes: int) -> Iterator[Block]:
    """Group pieces into blocks: as many as one read takes."""
    group: list[slice] = []
    size = 0
    for piece in pieces:
        group.append(piece)
        size += piece.stop - piece.start
        if size == block_bytes or len(group) == _MAX_PIECES:
            yield Block(offset, size, tuple(group))
            offset, group, size = offset + size, [], 0
    if group:
        yield Block(offset, size, tuple(group))
