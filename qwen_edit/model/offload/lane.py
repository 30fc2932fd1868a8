"""The way to the device, beside what it computes."""

from typing import Protocol

import torch
from torch import Tensor


class Arrival(Protocol):
    """A copy that was asked for."""

    def wait(self) -> None:
        """Let what the device computes from now on come after it. The host does not wait."""


class Lane(Protocol):
    """Copies that the device makes while it computes, one after the other."""

    def begin(self) -> None:
        """Let the copies from now on come after all that the device was given so far."""

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """Ask for a copy.

        Args:
            target: on the device. It has to last until the arrival was waited for.
            source: in the host's memory, pinned, or the copy is a slow one.
        """


class SideStream:
    """A CUDA stream beside the one that computes.

    It waits for a figure from a GPU: `docs/architecture.md`, "Waiting for a GPU".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """See `Lane`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """See `Lane`."""
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        return _Recorded(self._stream.record_event(), self._device)


class _Recorded:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self._event = event
        self._device = device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)


class AtOnce:
    """The CPU, which copies when it is told to."""

    def begin(self) -> None:
        """Everything before it is done."""

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """See `Lane`."""
        target.copy_(source)
        return self

    def wait(self) -> None:
        """It is there."""


def lane_to(device: torch.device) -> Lane:
    """The fastest way from the host's memory."""
    return SideStream(device) if device.type == "cuda" else AtOnce()
