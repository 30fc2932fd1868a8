"""A module whose weights wait in the host's memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qwen_edit.model.offload.homes import Home, make_homes
from qwen_edit.model.offload.lane import Lane, lane_to
from qwen_edit.weights.pinned import pin


class Parked:
    """A module whose weights are in the host's memory, pinned where the device is a GPU, and can be brought to it.

    They are constant, so to move them out again is to forget the copies. While they are out, each tensor of the module
    is an empty one on the device: whoever asks the module for its device or its dtype is told the right one.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, lane: Lane | None = None, *, whole: bool = False
    ) -> None:
        """Move a module's parameters and buffers to the host, and hold them there.

        Args:
            lane: how they come to the device.
            whole: whether all of them have to be there before anything is computed. Otherwise each of its blocks, which
                are what its outermost lists of modules hold, waits for its own when it is called.
        """
        self._device = device
        self._lane = lane or lane_to(device)
        blocks = [] if whole else list(_blocks(module))
        inside = {id(tensor) for block in blocks for tensor in _tensors([block])}
        before = [tensor for tensor in _tensors([module]) if id(tensor) not in inside]
        with _writable():
            self._homes = make_homes(
                list({id(tensor): tensor for tensor in [*before, *_tensors(blocks)]}.values()),
                pin if device.type == "cuda" else lambda _memory: None,
            )
        self._before = self._homes_of(before)
        for block in blocks:
            block.register_forward_pre_hook(_Arriving(self._homes_of(_tensors([block]))))
        self.release()

    @property
    def is_here(self) -> bool:
        """Whether all of the weights are on the device, or on their way."""
        return all(home.is_away for home in self._homes)

    def bring(self) -> None:
        """Copy the weights to the device beside what it computes; nothing where they are.

        Raises:
            torch.OutOfMemoryError: they do not fit; then they are out.
        """
        coming = [home for home in self._homes if not home.is_away]
        if not coming:
            return
        try:
            with _writable():
                places = [torch.empty(home.nbytes, dtype=torch.uint8, device=self._device) for home in coming]
                self._lane.begin()
                for home, place in zip(coming, places, strict=True):
                    home.go(place, self._lane)
                for home in self._before:
                    home.arrive()
        except BaseException:
            self.release()
            raise

    def arrive(self) -> None:
        """Let what is computed from now on come after all copies."""
        for home in self._homes:
            home.arrive()

    def release(self, keep: int = 0) -> None:
        """Give the device's memory back.

        Args:
            keep: bytes that may stay, of what is needed first.
        """
        with _writable():
            for home in self._homes:
                keep = keep - home.nbytes if home.is_away else -1
                if keep < 0:
                    home.come_back(self._device)

    def _homes_of(self, tensors: Iterable[Tensor]) -> list[Home]:
        wanted = {id(tensor) for tensor in tensors}
        return [home for home in self._homes if any(id(tensor) in wanted for tensor in home.tensors)]


class _Arriving:
    """Before a block computes: lets that come after the copies of its weights."""

    def __init__(self, homes: list[Home]) -> None:
        self._homes = homes

    def __call__(self, _module: nn.Module, _arguments: object) -> None:
        for home in self._homes:
            home.arrive()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What the outermost lists of modules hold, in order."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


@contextmanager
def _writable() -> Iterator[None]:
    """Make tensors that outlive an inference, in one as well."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield
