"""Who is on the device."""

from typing import NamedTuple

import torch
from torch import nn

from qwen_edit.model.offload.lane import Lane
from qwen_edit.model.offload.parked import Parked


class Stays(NamedTuple):
    """Bytes of each module that may stay on the device in the other's turn."""

    text_encoder: int = 0
    transformer: int = 0


class DeviceTurns:
    """The large modules of a pipeline that do not fit the device together: one at a time is there.

    A module that was not added is on the device as it is, and every call here for it does nothing.
    """

    def __init__(
        self, device: torch.device, stays: Stays | None = None, *, whole: bool = False, lane: Lane | None = None
    ) -> None:
        """Begin without modules.

        Args:
            stays: what fits beside the other's turn. It waits for a figure from a GPU: `docs/architecture.md`.
            whole: see `Parked`; for blocks that are compiled, whose graphs have no place for what waits.
            lane: see `Parked`.
        """
        self.stays = stays or Stays()
        self._device = device
        self._whole = whole
        self._lane = lane
        self._parked: dict[nn.Module, Parked] = {}
        self._keep: dict[nn.Module, int] = {}

    def add(self, module: nn.Module, keep: int = 0) -> None:
        """Move a module out; from now on it is on the device in its turn alone.

        Args:
            keep: bytes of it that stay in other turns, once it has had one.
        """
        self._parked[module] = Parked(module, self._device, self._lane, whole=self._whole)
        self._keep[module] = keep

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
                    parked.release(self._keep[other])
            self._parked[module].bring()

    def arrive(self, module: nn.Module) -> None:
        """Let what is computed from now on come after all copies of a module, for whoever reads it without a call."""
        if module in self._parked:
            self._parked[module].arrive()

    def keep_nothing(self) -> None:
        """Let nothing stay any more: the memory did not suffice."""
        self._keep = dict.fromkeys(self._keep, 0)
        for parked in self._parked.values():
            if not parked.is_here:
                parked.release()
