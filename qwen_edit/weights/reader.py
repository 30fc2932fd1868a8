"""safetensors files → tensors on the device, read in the background while the caller does something else."""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from qwen_edit.errors import Cancelled
from qwen_edit.weights import header
from qwen_edit.weights.disk import Identity, open_file
from qwen_edit.weights.placement import Block, place
from qwen_edit.weights.shards import shards
from qwen_edit.weights.sinks import Sink, sink_for

READERS = 8
BLOCK_BYTES = 32 << 20
"""Threads that read, and what each asks the disk for at once.

In `bench/RESULTS.md` these read as fast as plain reads into memory, and half as many of half the size a sixth slower
beside a thread that keeps the interpreter busy, as imports do: a reader that is done with a block waits up to 5 ms for
the GIL before it asks for the next. `bench/reading.py --grid` measures others.
"""

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


@dataclass(frozen=True)
class Stats:
    """What reading cost: the bytes of the files that were handed out, and the seconds until the last had arrived."""

    bytes: int = 0
    seconds: float = 0.0


class Weights:
    """Files on their way to the device, in the order in which they will be needed.

    Reading begins at once, in threads that do without the GIL. Each file has one buffer on the device, and its tensors
    are views of that: the memory is free again when the last of them is gone. Close it, or use it in a `with`, and no
    thread is left, nor memory other than that of the tensors that were handed out.
    """

    def __init__(
        self,
        files: Iterable[Path],
        device: torch.device,
        *,
        readers: int = READERS,
        block_bytes: int = BLOCK_BYTES,
        sink: Sink | None = None,
    ) -> None:
        """Check every header and start reading.

        Args:
            device: where the tensors will be, `cpu` or `cuda`.
            readers: how many threads read.
            block_bytes: how much each reads at once; on CUDA the pinned ring has `readers` slots of this size.
            sink: that of the device where left out.

        Raises:
            ModelUnavailable: a file is missing, or its header says that it is damaged.
        """
        self.device = device
        self._started = time.perf_counter()
        self._stats = Stats()
        self._sink = sink or sink_for(device, readers, block_bytes)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="weights")
        self._open = ExitStack()
        self._files: dict[Path, _File] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for path in dict.fromkeys(files):
                file = _File(path, self._open, self._sink, block_bytes)
                self._files[path] = file
                file.start(self._pool)
            undo.pop_all()

    @property
    def stats(self) -> Stats:
        """Of the files handed out so far."""
        return self._stats

    def tensors(self, path: Path) -> dict[str, Tensor]:
        """Wait for one file and hand its tensors out, once: the memory is the caller's from then on.

        Returns:
            Every tensor of the file under its name, in file order, with the dtype and the shape it has there. On CUDA
            they are ready for what the caller's current stream is given next.

        Raises:
            KeyError: the file is not among those that are read, or was handed out already.
            ModelUnavailable: the file could not be read, or was changed or replaced since its header was.
            Cancelled: `close` was called.
        """
        file = self._files.pop(path)
        file.wait()
        self._sink.join()
        self._stats = Stats(
            self._stats.bytes + file.header.size, max(self._stats.seconds, file.arrived - self._started)
        )
        return file.tensors()

    def close(self) -> None:
        """Stop reading, and let go of every file that was not handed out."""
        self._pool.shutdown(cancel_futures=True)
        self._sink.close()
        self._open.close()
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _File:
    """One file on its way into its buffer."""

    def __init__(self, path: Path, opened: ExitStack, sink: Sink, block_bytes: int) -> None:
        self._path = path
        self._sink = sink
        self._name = header.file_name(path)
        with header.disk_errors(self._name):
            # Open until nobody reads any more, lest its number is given to another file.
            self._descriptor = opened.enter_context(open_file(path)).fileno()
            self._identity = Identity.of(self._descriptor)
            self.header = header.parse(self._descriptor, self._name)
        self._placement = place(self.header, block_bytes)
        self._buffer = sink.allocate(self._placement.bytes)
        self._reads: deque[Future[None]] = deque()
        self.arrived = time.perf_counter()

    def start(self, pool: ThreadPoolExecutor) -> None:
        self._reads.extend(pool.submit(self._read, block) for block in self._placement.blocks)

    def wait(self) -> None:
        """Wait for every block; see `Weights.tensors` for what is raised."""
        with header.disk_errors(self._name):
            try:
                while self._reads:
                    self._reads.popleft().result()
            except CancelledError as error:
                raise Cancelled("the load was cancelled") from error
            finally:
                self._reads.clear()  # their errors would hold on to this object and so to its buffer
            if Identity.of(self._path) != self._identity:
                raise header.FileError(f"{self._name}: was changed or replaced while it was read; start again")

    def tensors(self) -> dict[str, Tensor]:
        by_dtype = {entry.dtype: self._buffer.view(DTYPES[entry.dtype]) for entry in self.header.tensors.values()}
        return {
            name: _view(by_dtype[entry.dtype], self._placement.starts[name], entry.bytes, entry.shape)
            for name, entry in self.header.tensors.items()
        }

    def _read(self, block: Block) -> None:
        count = self._sink.read(self._descriptor, block, self._buffer)
        if count < block.bytes:
            raise header.FileError(
                f"{self._name}: was cut short while it was read: it ended at byte {block.offset + count}, "
                f"expected {self.header.size}"
            )
        self.arrived = time.perf_counter()


def _view(buffer: Tensor, start: int, size: int, shape: tuple[int, ...]) -> Tensor:
    """The tensor that begins at byte `start` of the buffer, which is of its dtype already."""
    return buffer[start // buffer.itemsize : (start + size) // buffer.itemsize].view(shape)


def folder_tensors(weights: Weights, folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Wait for every tensor of a model folder, and make the floating point ones `dtype`.

    Raises:
        ModelUnavailable: a shard is missing or damaged, or there is none.
    """
    tensors: dict[str, Tensor] = {}
    for shard in shards(folder):
        tensors |= {name: _as(dtype, tensor) for name, tensor in weights.tensors(shard).items()}
    return tensors


def read_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Read a model folder now; see `folder_tensors`."""
    with Weights(shards(folder), device) as weights:
        return folder_tensors(weights, folder, dtype)


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
