"""Modules that wait in the host's memory and are on the device only while it is their turn."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qwen_edit.log import log

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

LARGE_BYTES = 32 << 20
"""A storage in the host's memory that is at least this large is used where it is: it has pages of its own, which can
be pinned. What is smaller, or on the device, is gathered in a new one."""

ALIGNMENT = 64
"""Bytes; see `qwen_edit.weights.placement`."""


class Turns:
    """The large modules of a pipeline that do not fit the device together.

    A module's turn begins when it is called, and lasts until another's does. A module that was not added is on the
    device as it is, and every call here for it does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parked: dict[nn.Module, Parked] = {}
        self._hooks: dict[nn.Module, RemovableHandle] = {}

    def add(self, module: nn.Module) -> None:
        """Move a module out; from now on it is there in its turn alone."""
        self._parked[module] = Parked(module, self._device)
        # Before other hooks, which may compute with the module's weights.
        self._hooks[module] = module.register_forward_pre_hook(lambda called, _args: self.bring(called), prepend=True)

    def remove(self, module: nn.Module) -> None:
        """Forget a module, with its weights: it cannot be used any more."""
        if self._parked.pop(module, None):
            self._hooks.pop(module).remove()

    def bring(self, module: nn.Module) -> None:
        """Begin a module's turn, as a call of it does: any other is moved out first.

        Raises:
            torch.OutOfMemoryError: it does not fit; then it is out.
        """
        if module in self._parked:
            for other, parked in self._parked.items():
                if other is not module and parked.is_here:
                    parked.release()
            self._parked[module].bring()

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[None]:
        """A turn that ends with the block, however that ends; see `bring`."""
        self.bring(module)
        try:
            yield
        finally:
            if module in self._parked:
                self._parked[module].release()


class Parked:
    """A module whose weights are in the host's memory, pinned where the device is a GPU, and can be brought to it.

    They are constant, so to move them out again is to forget the copies. While they are out, each tensor of the module
    is an empty one on the device: whoever asks the module for its device or its dtype is told the right one.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Move a module's parameters and buffers to the host, and hold them there."""
        self._device = device
        self._here = True
        tensors = [*module.parameters(), *module.buffers()]
        staying = [tensor for tensor in tensors if _is_large(tensor)]
        moving = [tensor for tensor in tensors if not _is_large(tensor)]
        with _writable():
            self._homes, self._places = _in_place(staying)
            gathered, places = _gathered(moving, len(self._homes))
        self._homes.append(gathered)
        self._places += places
        self._tensors = [*staying, *moving]
        self.release()
        if device.type == "cuda":
            for home in self._homes:
                _pin(home)

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
                copies = [home.to(self._device, non_blocking=True, copy=True) for home in self._homes]
                for tensor, place in zip(self._tensors, self._places, strict=True):
                    tensor.data = place.view(copies[place.home])
        except BaseException:
            self.release()
            raise
        self._here = True

    def release(self) -> None:
        """Give the device's memory back."""
        with _writable():
            for tensor in self._tensors:
                tensor.data = torch.empty(0, dtype=tensor.dtype, device=self._device)
        self._here = False


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: which home, from which item on, and how."""

    home: int
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    def view(self, home: Tensor) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype, device=home.device)
        return empty.set_(home.untyped_storage(), self.offset, self.shape, self.stride)


def _in_place(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[_Place]]:
    """The storages of tensors as their homes, uint8, and the place of each tensor."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    numbers = {pointer: number for number, pointer in enumerate(storages)}
    places = [
        _Place(
            numbers[tensor.untyped_storage().data_ptr()],
            tensor.dtype,
            int(tensor.storage_offset()),
            tensor.shape,
            tensor.stride(),
        )
        for tensor in tensors
    ]
    return [torch.empty(0, dtype=torch.uint8).set_(storage) for storage in storages.values()], places


def _gathered(tensors: Sequence[Tensor], number: int) -> tuple[Tensor, list[_Place]]:
    """A new home, uint8, that tensors are copied to one after the other, and the place of each in it."""
    ends = list(accumulate(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors))
    home = torch.empty(ends[-1] if ends else 0, dtype=torch.uint8)
    places = []
    for tensor, start in zip(tensors, [0, *ends], strict=False):
        stride = torch.empty_like(tensor, device="meta").stride()  # the tensor's own where that has no gaps
        place = _Place(number, tensor.dtype, start // tensor.itemsize, tensor.shape, stride)
        place.view(home).copy_(tensor)
        places.append(place)
    return home, places


def _is_large(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() >= LARGE_BYTES


def _pin(home: Tensor) -> None:
    """Let the GPU read memory of the host by itself, as it lies: PyTorch's own pinned memory comes in powers of two."""
    if not home.nbytes:
        return
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointer = home.data_ptr()
    if error := int(cudart.cudaHostRegister(pointer, home.nbytes, 0)):
        log("memory not pinned", "warning", bytes=home.nbytes, error=error)  # copies from it are slower, and right
        with suppress(RuntimeError):  # CUDA keeps the error for whoever launches a kernel next
            torch.zeros(1, device="cuda")
        return
    weakref.finalize(home, cudart.cudaHostUnregister, pointer).atexit = False


@contextmanager
def _writable() -> Iterator[None]:
    """Make tensors that outlive an inference, in one as well."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield
