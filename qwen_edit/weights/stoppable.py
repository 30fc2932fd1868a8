"""Reading that ends when somebody says so, not when the file does."""

from collections.abc import Callable, Mapping

from torch import Tensor

from qwen_edit.errors import Cancelled
from qwen_edit.weights.header import TensorEntry
from qwen_edit.weights.placement import Placement, Read
from qwen_edit.weights.sinks import Sink


class Stoppable:
    """A sink that does no further read once a flag is set."""

    def __init__(self, sink: Sink, cancelled: Callable[[], bool]) -> None:
        self._sink = sink
        self._cancelled = cancelled

    def land(self, descriptor: int, tensors: Mapping[str, TensorEntry], bytes_a_read: int) -> tuple[Placement, Tensor]:
        """See `Sink`."""
        return self._sink.land(descriptor, tensors, bytes_a_read)

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        """See `Sink`.

        Raises:
            Cancelled: the flag is set.
        """
        if self._cancelled():
            raise Cancelled("the load was cancelled")
        return self._sink.read(descriptor, span, buffer)

    def join(self) -> None:
        """See `Sink`."""
        self._sink.join()

    def close(self) -> None:
        """See `Sink`."""
        self._sink.close()
