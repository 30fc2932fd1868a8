"""Reading that ends when somebody says so, not when the file does."""

from collections.abc import Callable, Mapping

from torch import Tensor

from qwen_edit.errors import Cancelled
from qwen_edit.weights.header import TensorEntry
from qwen_edit.weights.placement import Block, Placement
from qwen_edit.weights.sinks import Sink


class Stoppable:
    """A sink that takes no further block once a flag is set."""

    def __init__(self, sink: Sink, cancelled: Callable[[], bool]) -> None:
        self._sink = sink
        self._cancelled = cancelled

    def land(self, descriptor: int, tensors: Mapping[str, TensorEntry], block_bytes: int) -> tuple[Placement, Tensor]:
        """See `Sink`."""
        return self._sink.land(descriptor, tensors, block_bytes)

    def read(self, descriptor: int, block: Block, buffer: Tensor) -> int:
        """See `Sink`.

        Raises:
            Cancelled: the flag is set.
        """
        if self._cancelled():
            raise Cancelled("the load was cancelled")
        return self._sink.read(descriptor, block, buffer)

    def join(self) -> None:
        """See `Sink`."""
        self._sink.join()

    def close(self) -> None:
        """See `Sink`."""
        self._sink.close()
