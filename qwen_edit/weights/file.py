"""One safetensors file on its way to the device, whole or in portions of tensors."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from qwen_edit.errors import Cancelled
from qwen_edit.store.documents import FileError, disk_errors, file_name
from qwen_edit.store.files import open_file
from qwen_edit.weights import header
from qwen_edit.weights.disk import Identity
from qwen_edit.weights.header import TensorEntry
from qwen_edit.weights.placement import Read
from qwen_edit.weights.sinks import Sink

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "U8": torch.uint8,
        "I8": torch.int8,
        "U16": torch.uint16,
        "I16": torch.int16,
        "U32": torch.uint32,
        "I32": torch.int32,
        "U64": torch.uint64,
        "I64": torch.int64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F32": torch.float32,
        "F64": torch.float64,
        "C64": torch.complex64,
    }
)
"""PyTorch's names of the safetensors dtypes in `header.ITEM_BYTES`."""

Portions = Sequence[Sequence[str]]
"""The names of the tensors of each portion, in the order in which the portions are needed."""

Entries = Mapping[str, TensorEntry]

_CANCELLED = "the load was cancelled"


class WeightFile:
    """An open file. What it hands out is its portions, one after the other."""

    def __init__(self, path: Path, opened: ExitStack, sink: Sink, pool: Executor, bytes_a_read: int) -> None:
        """Open it and check its header.

        Raises:
            ModelUnavailable: it is missing, or its header says that it is damaged.
        """
        self._path = path
        self._sink = sink
        self._pool = pool
        self._bytes_a_read = bytes_a_read
        self._name = file_name(path)
        with disk_errors(self._name):
            # Open until nobody reads any more, lest its number is given to another file.
            self._file = opened.enter_context(open_file(path))
            self._descriptor = self._file.fileno()
            self._identity = Identity.of(self._descriptor)
            self.header = header.parse(self._descriptor, self._name)
        self._waiting: deque[Entries] = deque()
        self._begun: deque[_Portion] = deque()

    def queue_all(self, wanted: Callable[[str], bool]) -> None:
        """Make one portion of the tensors whose names are wanted."""
        self._waiting.append({name: entry for name, entry in self.header.tensors.items() if wanted(name)})

    def queue(self, portions: Portions) -> None:
        """Let these be the portions; tensors that are in none are not read.

        Raises:
            KeyError: the file has no tensor of such a name.
        """
        tensors = self.header.tensors
        for names in portions:
            self._waiting.append({name: tensors[name] for name in sorted(names, key=lambda one: tensors[one].offset)})

    def begin(self) -> None:
        """Start reading the next portion, if there is one.

        Raises:
            ModelUnavailable: the file has been cut short.
            Cancelled: the pool was shut down.
        """
        if self._waiting:
            if self._file.closed:
                raise Cancelled(_CANCELLED)
            with disk_errors(self._name):
                portion = _Portion(self._descriptor, self._waiting.popleft(), self._sink, self._bytes_a_read)
            portion.start(self._pool, self._descriptor, self._name, self.header.size)
            self._begun.append(portion)

    @property
    def is_done(self) -> bool:
        """Whether every portion has been handed out."""
        return not self._begun and not self._waiting

    def take(self) -> "Arrived":
        """Wait for the earliest portion that was begun; see `Weights.tensors` for what is raised."""
        portion = self._begun.popleft()
        with disk_errors(self._name):
            portion.wait()
            if Identity.of(self._path) != self._identity:
                raise FileError(f"{self._name}: was changed or replaced while it was read; start again")
        return Arrived(portion.tensors(), portion.bytes, portion.arrived)


class Arrived:
    """A portion on the device: its tensors, their bytes, and when the last of them came (`time.perf_counter`)."""

    def __init__(self, tensors: dict[str, Tensor], size: int, at: float) -> None:
        self.tensors = tensors
        self.bytes = size
        self.at = at


class _Portion:
    """Tensors of a file on their way into a buffer that they share."""

    def __init__(self, descriptor: int, entries: Entries, sink: Sink, bytes_a_read: int) -> None:
        self._entries = entries
        self._sink = sink
        self._placement, self._buffer = sink.land(descriptor, entries, bytes_a_read)
        self._reads: deque[Future[None]] = deque()
        self.bytes = sum(entry.bytes for entry in entries.values())
        self.arrived = time.perf_counter()

    def start(self, pool: Executor, descriptor: int, file: str, file_bytes: int) -> None:
        def read(span: Read) -> None:
            count = self._sink.read(descriptor, span, self._buffer)
            if count < span.bytes:
                raise FileError(
                    f"{file}: was cut short while it was read: it ended at byte {span.offset + count}, "
                    f"expected {file_bytes}"
                )
            self.arrived = time.perf_counter()

        try:
            self._reads.extend(pool.submit(read, span) for span in self._placement.reads)
        except RuntimeError as error:  # of a pool that was shut down
            raise Cancelled(_CANCELLED) from error

    def wait(self) -> None:
        """Wait for every read.

        Raises:
            Cancelled: the pool was shut down before.
        """
        try:
            while self._reads:
                self._reads.popleft().result()
        except CancelledError as error:
            raise Cancelled(_CANCELLED) from error
        finally:
            self._reads.clear()  # their errors would hold on to this object and so to its buffer

    def tensors(self) -> dict[str, Tensor]:
        return {name: _view(self._buffer, self._placement.starts[name], entry) for name, entry in self._entries.items()}


def _view(buffer: Tensor, start: int, entry: TensorEntry) -> Tensor:
    """The tensor that begins at byte `start` of the buffer; a copy where no value of its dtype may begin there."""
    dtype = DTYPES[entry.dtype]
    part = buffer[start : start + entry.bytes]
    return (part.clone() if start % dtype.itemsize else part).view(dtype).view(entry.shape)
