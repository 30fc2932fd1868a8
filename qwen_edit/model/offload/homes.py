"""Where weights wait in the host's memory: in large pieces, which come to the device one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from qwen_edit.model.offload.lane import Arrival, Lane

LARGE_BYTES = 32 << 20
FULL = 0.9
"""A storage in the host's memory that is at least this large, and that far filled with tensors of one module, is used
where it is: it has pages of its own, which can be pinned. What lies elsewhere is gathered in new ones; so is what lies
in a file that is mapped and holds more than the module, all of which would come to the device otherwise."""

HOME_BYTES = 1 << 30
"""How large a home is, unless a tensor is larger: the device need not have more than that free in one piece, where not
all of the memory can be pinned, most of it is, and the first one is there long before the last."""

ALIGNMENT = 64
"""Bytes; see `qwen_edit.weights.placement`."""

Pin = Callable[[Tensor], None]
"""Lets the device read memory of the host by itself, for as long as that tensor is there."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in its home: from which item on, and how."""

    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, start: int) -> Self:
        """The place of a tensor in the part of its storage that begins at byte `start`."""
        offset = int(tensor.storage_offset()) - start // tensor.itemsize
        return cls(tensor.dtype, offset, tensor.shape, tensor.stride())

    def view(self, memory: Tensor) -> Tensor:
        """The tensor, in memory that begins where its home does."""
        empty = torch.empty(0, dtype=self.dtype, device=memory.device)
        first = int(memory.storage_offset()) // empty.itemsize
        return empty.set_(memory.untyped_storage(), first + self.offset, self.shape, self.stride)


@dataclass(eq=False)
class Home:
    """Memory of the host, and the tensors that are at home in it, here or on the device.

    `memory` is uint8, and `owner` the tensor that keeps it pinned.
    """

    memory: Tensor
    owner: Tensor
    tensors: list[Tensor]
    places: list[Place]
    is_away: bool = field(default=False, init=False)
    _arrival: Arrival | None = field(default=None, init=False)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    def go(self, copy: Tensor, lane: Lane) -> None:
        """Begin to bring the tensors into memory of the device, as large as this."""
        for tensor, place in zip(self.tensors, self.places, strict=True):
            tensor.data = place.view(copy)
        self._arrival = lane.copy(copy, self.memory)
        self.is_away = True

    def arrive(self) -> None:
        """Let what is computed from now on come after the copy."""
        if self._arrival is not None:
            self._arrival.wait()
            self._arrival = None

    def come_back(self, device: torch.device) -> None:
        """Give the device's memory back. Each tensor is an empty one there."""
        self.arrive()  # else who gets that memory next would find the copy in it
        for tensor in self.tensors:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=device)
        self.is_away = False


def make_homes(tensors: Sequence[Tensor], pin: Pin) -> list[Home]:
    """Homes for tensors, which stay where they are in part.

    Args:
        tensors: in the order in which they are needed.

    Returns:
        In the order in which the first tensor of each is needed.
    """
    full, others = _by_storage(tensors)
    homes = [home for storage, inside in full for home in _in_place(storage, inside, pin)]
    homes += [_gathered(batch, pin) for batch in _batches(others)]
    needed = {id(tensor): number for number, tensor in enumerate(tensors)}
    return sorted(homes, key=lambda home: min(needed[id(tensor)] for tensor in home.tensors))


def _in_place(storage: torch.UntypedStorage, tensors: Iterable[Tensor], pin: Pin) -> Iterator[Home]:
    """Parts of a storage, which is pinned as a whole: two parts may share a page."""
    owner = torch.empty(0, dtype=torch.uint8).set_(storage)
    pin(owner)
    for batch in _batches(sorted(tensors, key=_start)):
        start = _start(batch[0]) // ALIGNMENT * ALIGNMENT
        end = max(_end(tensor) for tensor in batch)
        yield Home(owner[start:end], owner, batch, [Place.of(tensor, start) for tensor in batch])


def _gathered(tensors: list[Tensor], pin: Pin) -> Home:
    """New memory with copies of tensors. It is pinned first: copies from the device are faster then."""
    size, places = _side_by_side(tensors)
    memory = torch.empty(size, dtype=torch.uint8)
    pin(memory)
    for tensor, place in zip(tensors, places, strict=True):
        # In the order of the device's work, as all that becomes of this memory.
        place.view(memory).copy_(tensor, non_blocking=True)
    return Home(memory, memory, tensors, places)


def _by_storage(tensors: Iterable[Tensor]) -> tuple[list[tuple[torch.UntypedStorage, list[Tensor]]], list[Tensor]]:
    """The storages that are used where they are, each with its tensors, and the tensors that are in none of these."""
    storages: dict[tuple[torch.device, int], tuple[torch.UntypedStorage, list[Tensor]]] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages.setdefault((tensor.device, storage.data_ptr()), (storage, []))[1].append(tensor)
    full = [(storage, inside) for storage, inside in storages.values() if _is_full(storage, inside)]
    others = [inside for storage, inside in storages.values() if not _is_full(storage, inside)]
    return full, [tensor for inside in others for tensor in inside]


def _is_full(storage: torch.UntypedStorage, tensors: Iterable[Tensor]) -> bool:
    size = storage.nbytes()
    return storage.device.type == "cpu" and size >= LARGE_BYTES and sum(map(_bytes, tensors)) >= FULL * size


def _batches(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, together while they have `HOME_BYTES` at most."""
    batch: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if batch and size + tensor.nbytes > HOME_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(tensor)
        size += tensor.nbytes
    if batch:
        yield batch


def _side_by_side(tensors: Iterable[Tensor]) -> tuple[int, list[Place]]:
    """The bytes that tensors take one after the other, and the place of each."""
    places = []
    end = 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # the tensor's own where that has no gaps
        places.append(Place(tensor.dtype, end // tensor.itemsize, tensor.shape, stride))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return end, places


def _start(tensor: Tensor) -> int:
    """Where it begins in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.itemsize


def _end(tensor: Tensor) -> int:
    """The byte behind its last item in its storage."""
    if not tensor.numel():
        return _start(tensor)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return _start(tensor) + (last + 1) * tensor.itemsize


def _bytes(tensor: Tensor) -> int:
    return tensor.nbytes
