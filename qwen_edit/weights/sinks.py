"""Where the bytes of a file end up: in the CPU's memory, or on a GPU by way of a small pinned ring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor

from qwen_edit.weights.disk import fill
from qwen_edit.weights.header import TensorEntry
from qwen_edit.weights.mapping import CAN_MAP, Mapped
from qwen_edit.weights.placement import Placement, Read, place


class Sink(Protocol):
    """Does reads for several threads at once."""

    def land(self, descriptor: int, tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> tuple[Placement, Tensor]:
        """Decide where tensors of the open file will lie.

        Returns:
            Their places, with reads of `bytes_a_read` at most, and the buffer on the device that these fill: uint8.

        Raises:
            OSError: the file ends before the tensors do.
        """

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        """Do one read of the open file, into the buffer. Returns the bytes that were there to read.

        Raises:
            OSError: the disk cannot be read.
        """

    def join(self) -> None:
        """Make what has been read visible to what the caller gives to the device from now on."""

    def close(self) -> None:
        """Wait for what is under way, and let go of what the sink holds itself."""


class HostMemory:
    """The CPU where it cannot map: the kernel copies into memory whose pages the readers touch first, in parallel."""

    def land(self, _descriptor: int, tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> tuple[Placement, Tensor]:
        placement = place(tensors, bytes_a_read)
        return placement, self.allocate(placement.bytes)

    def allocate(self, size: int) -> Tensor:
        """New memory: uint8 [size], not filled."""
        # Not in huge pages: `bench/RESULTS.md` has them up to four times faster to fill where they are at hand, but
        # half as slow again on a virtual machine whose host has to find them first, as for a new process.
        return torch.empty(size, dtype=torch.uint8)

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        memory = buffer.numpy().data
        return fill(descriptor, [memory[piece] for piece in span.pieces], span.offset)

    def join(self) -> None:
        """Memory that a thread wrote is there for all."""

    def close(self) -> None:
        """Nothing is held."""


class Event(Protocol):
    """A point in the work of a device."""

    def synchronize(self) -> None:
        """Wait until the device has come to it, without the GIL."""


class Link(Protocol):
    """The way to a device that has memory of its own."""

    def allocate(self, size: int) -> Tensor:
        """Memory on the device: uint8 [size]."""

    def pin(self, size: int) -> Tensor:
        """Memory of the host that the device can read by itself: uint8 [size]."""

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Event:
        """Begin to copy from the second to the first of each pair. Returns the end of it."""

    def join(self) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """Wait for all copies."""


@dataclass
class _Slot:
    """A part of the ring: pinned when it is first used, and free again once the copy out of it is done."""

    memory: Tensor | None = None
    copied: Event | None = None


class PinnedRing:
    """A device: each read goes into a slot of a pinned ring, and is copied while the next one is read.

    The ring has a slot for each reader: to wait for the last copy out of it takes a fraction of the next read into it.
    Pinning is slow, 1 to 2.6 GB/s; the readers do it as they come to a slot, not the caller.
    """

    def __init__(self, link: Link, readers: int, bytes_a_read: int) -> None:
        self._link = link
        self._bytes_a_read = bytes_a_read
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(readers):
            self._free.put(_Slot())

    def land(self, _descriptor: int, tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> tuple[Placement, Tensor]:
        placement = place(tensors, bytes_a_read)
        return placement, self._link.allocate(placement.bytes)

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        slot = self._free.get()
        try:
            return self._read(slot, descriptor, span, buffer)
        finally:
            self._free.put(slot)

    def join(self) -> None:
        self._link.join()

    def close(self) -> None:
        """PyTorch keeps the pinned memory for whoever pins next, which is the next change of the checkpoint."""
        self._link.close()

    def _read(self, slot: _Slot, descriptor: int, span: Read, buffer: Tensor) -> int:
        if slot.copied is not None:
            slot.copied.synchronize()
        if slot.memory is None:
            slot.memory = self._link.pin(self._bytes_a_read)
        staged = slot.memory[: span.bytes]
        count = fill(descriptor, [staged.numpy().data], span.offset)
        if count == span.bytes:
            targets = [buffer[piece] for piece in span.pieces]
            sources = torch.split(staged, [len(target) for target in targets])
            slot.copied = self._link.copy(list(zip(targets, sources, strict=True)))
        return count


class CudaLink:
    """A CUDA device: copies run on a stream of their own, beside whatever else it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def allocate(self, size: int) -> Tensor:
        buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        # The memory may have belonged to tensors that the caller's stream is not done with.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # And if it is let go of early, it must not be given away while a copy into it is under way.
        buffer.record_stream(self._stream)
        return buffer

    def pin(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        # Who waits for it leaves the core to others.
        copied: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        return copied

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def close(self) -> None:
        self._stream.synchronize()


def sink_for(device: torch.device, readers: int, bytes_a_read: int) -> Sink:
    """The sink of a device: the CPU or a CUDA device."""
    if device.type == "cpu":
        return Mapped() if CAN_MAP else HostMemory()
    return PinnedRing(CudaLink(device), readers, bytes_a_read)
