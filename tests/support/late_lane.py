"""A way to the device on which everything comes as late as it may."""

from dataclasses import dataclass

from torch import Tensor

from qwen_edit.model.offload.lane import Arrival


class LateLane:
    """Copies when somebody waits for it. Until then the target holds what is no number, in the floating dtypes.

    `events` says in which order copies were asked for and waited for, each by its number.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self._copies = 0

    def begin(self) -> None:
        """See `Lane`."""
        self.events.append(("begin", self._copies))

    def copy(self, target: Tensor, source: Tensor) -> Arrival:
        """See `Lane`."""
        target.fill_(255)
        self.events.append(("copy", self._copies))
        self._copies += 1
        return _Late(self, self._copies - 1, target, source)


@dataclass
class _Late:
    lane: LateLane
    number: int
    target: Tensor
    source: Tensor

    def wait(self) -> None:
        self.target.copy_(self.source)
        self.lane.events.append(("wait", self.number))
