"""Modules that wait in the host's memory and are on the device only while it is their turn."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from qwen_edit.weights.pinned import pin

LARGE_BYTES = 32 << 20
FULL = 0.9
"""A storage in the host's memory that is at least this large, and that far filled with tensors of one module, is used
where it is: it has pages of its own, which can be pinned. What lies elsewhere is gathered in new ones; so is what lies
in a file that is mapped and holds more than the module, all of which would come to the device otherwise."""

HOME_BYTES = 1 << 30
"""How large the new ones are, unless a tensor is larger: the device need not have more than that free in one piece, and
where not all of the memory can be pinned, most of it is."""

ALIGNMENT = 64
"""Bytes; see `qwen_edit.weights.placement`."""


class DeviceTurns:
    """The large modules of a pipeline that do not fit the device together: one at a time is there.

    A module that was not added is on the device as it is, and every call here for it does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parked: dict[nn.Module, Parked] = {}

    def add(self, module: nn.Module) -> None:
        """Move a module out; from now on it is on the device in its turn alone."""
        self._parked[module] = Parked(module, self._device)

    def remove(self, module: nn.Module) -> None:
        """Forget a module, with its weights: it cannot be used any more."""
        self._parked.pop(module, None)

    def bring(self, module: nn.Module) -> None:
        """Begin a module's turn, before it is called: any other is moved out first.

        Raises:
            torch.OutOfMemoryError: it does not fit; then it is out.
        """
        if module in self._parked:
            for other, parked in self._parked.items():
                if other is not module and parked.is_here:
                    parked.release()
            self._parked[module].bring()


class Parked:
    """A module whose weights are in the host's memory, pinned where the device is a GPU, and can be brought to it.

    They are constant, so to move them out again is to forget the copies. While they are out, each tensor of the module
    is an empty one on the device: whoever asks the module for its device or its dtype is told the right one.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Move a module's parameters and buffers to the host, and hold them there."""
        self._device = device
        self._here = True
        self._homes: list[_Home] = []
        full, others = _by_storage([*module.parameters(), *module.buffers()])
        with _writable():
            for storage, tensors in full:
                self._house(torch.empty(0, dtype=torch.uint8).set_(storage), tensors, map(_Place.of, tensors))
            for tensors in _batches(others):
                self._gather(tensors)
        self.release()

    @property
    def is_here(self) -> bool:
        """Whether the weights are on the device."""
        return self._here

    def bring(self) -> None:
        """Copy the weights to the device, in the order of what its current stream is given; nothing where they are.

        Raises:
            torch.OutOfMemoryError: they do not fit; then they are out.
        """
        if self._here:
            return
        try:
            with _writable():
                copies = [home.memory.to(self._device, non_blocking=True, copy=True) for home in self._homes]
                for home, copy in zip(self._homes, copies, strict=True):
                    for tensor, place in zip(home.tensors, home.places, strict=True):
                        tensor.data = place.view(copy)
        except BaseException:
            self.release()
            raise
        self._here = True

    def release(self) -> None:
        """Give the device's memory back."""
        with _writable():
            for home in self._homes:
                for tensor in home.tensors:
                    tensor.data = torch.empty(0, dtype=tensor.dtype, device=self._device)
        self._here = False

    def _gather(self, tensors: list[Tensor]) -> None:
        """Copy tensors into new memory, which is pinned first: copies from the device are faster then."""
        size, places = _side_by_side(tensors)
        memory = torch.empty(size, dtype=torch.uint8)
        self._house(memory, tensors, places)
        for tensor, place in zip(tensors, places, strict=True):
            # In the order of the device's work, as all that becomes of this memory.
            place.view(memory).copy_(tensor, non_blocking=True)

    def _house(self, memory: Tensor, tensors: list[Tensor], places: Iterable["_Place"]) -> None:
        if self._device.type == "cuda":
            pin(memory)
        self._homes.append(_Home(memory, tensors, list(places)))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in its home: from which item on, and how."""

    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """The place of a tensor in the storage that it is a view of."""
        return cls(tensor.dtype, int(tensor.storage_offset()), tensor.shape, tensor.stride())

    def view(self, memory: Tensor) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device=memory.device)
        return empty.set_(memory.untyped_storage(), self.offset, self.shape, self.stride)


@dataclass(frozen=True, eq=False)
class _Home:
    """Memory of the host, uint8, and the tensors that are at home in it."""

    memory: Tensor
    tensors: list[Tensor]
    places: list[_Place]


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


def _side_by_side(tensors: Iterable[Tensor]) -> tuple[int, list[_Place]]:
    """The bytes that tensors take one after the other, and the place of each."""
    places = []
    end = 0
    for tensor in tensors:
        stride = torch.empty_like(tensor, device="meta").stride()  # the tensor's own where that has no gaps
        places.append(_Place(tensor.dtype, end // tensor.itemsize, tensor.shape, stride))
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return end, places


def _bytes(tensor: Tensor) -> int:
    return tensor.nbytes


@contextmanager
def _writable() -> Iterator[None]:
    """Make tensors that outlive an inference, in one as well."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield
