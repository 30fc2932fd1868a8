"""safetensors files → tensors on the device, read in the background while the caller does something else."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from qwen_edit.store.documents import CHECK, FileError, file_name, show
from qwen_edit.store.shards import shards
from qwen_edit.weights.file import Arrived, Portions, WeightFile
from qwen_edit.weights.placement import WINDOW
from qwen_edit.weights.sinks import Sink, sink_for

READERS = max(4, min(8, os.cpu_count() or 8))
BYTES_A_READ = 32 << 20
"""Threads that read, and what each asks the disk for at once.

By `bench/start/reading.py` on a virtual disk with two cores, four map files an eighth faster than two and than eight.
Small reads are slower: while imports run, a reader that is done with one waits up to 5 ms for the GIL before it asks
for the next.
"""

_WHOLE: Mapping[Path, Portions] = MappingProxyType({})


def everything(_name: str) -> bool:
    """A filter that lets every tensor through."""
    return True


@dataclass(frozen=True)
class Stats:
    """What reading cost: the bytes of the tensors that were handed out, with the headers of their files, and the
    seconds until the last had arrived."""

    bytes: int = 0
    seconds: float = 0.0


class Weights:
    """Files on their way to the device, in the order in which they will be needed.

    Reading begins at once, in threads that do without the GIL. A file is handed out whole or in portions. Each of these
    has one buffer on the device, and its tensors are views of that: the memory is free again when the last of them is
    gone. Close it, or use it in a `with`, and no thread is left, nor memory other than that of the tensors that were
    handed out.
    """

    def __init__(
        self,
        files: Iterable[Path],
        device: torch.device,
        *,
        portions: Mapping[Path, Portions] = _WHOLE,
        wanted: Callable[[str], bool] = everything,
        readers: int = READERS,
        bytes_a_read: int = BYTES_A_READ,
        sink: Sink | None = None,
    ) -> None:
        """Check every header and start reading.

        Args:
            device: where the tensors will be, `cpu` or `cuda`.
            portions: of the files that are handed out in portions, of which `WINDOW` are in memory at once.
            wanted: by name, the tensors to read of the files that are handed out whole.
            readers: how many threads read.
            bytes_a_read: how much each reads at once; on CUDA the pinned ring has `readers` slots of this size.
            sink: that of the device where left out.

        Raises:
            ModelUnavailable: a file is missing, or its header says that it is damaged.
            KeyError: a portion names a tensor that its file does not have.
        """
        self.device = device
        self._started = time.perf_counter()
        self._stats = Stats()
        self._lock = Lock()
        self._sink = sink or sink_for(device, readers, bytes_a_read)
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="weights")
        self._open = ExitStack()
        self._files: dict[Path, WeightFile] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for path in dict.fromkeys(files):
                file = WeightFile(path, self._open, self._sink, self._pool, bytes_a_read)
                self._files[path] = file
                if path in portions:
                    file.queue(portions[path])
                else:
                    file.queue_all(wanted)
                for _ in range(WINDOW):
                    file.begin()
            undo.pop_all()

    @property
    def stats(self) -> Stats:
        """Of what was handed out so far."""
        return self._stats

    def tensors(self, path: Path) -> dict[str, Tensor]:
        """Wait for one file and hand its tensors out, once: the memory is the caller's from then on.

        Returns:
            Every wanted tensor of the file under its name, in file order, with the dtype and the shape it has there. On
            CUDA they are ready for what the caller's current stream is given next.

        Raises:
            KeyError: the file is not among those that are read, or was handed out already.
            ModelUnavailable: the file could not be read, or was changed or replaced since its header was.
            Cancelled: `close` was called.
        """
        tensors: dict[str, Tensor] = {}
        for portion in self._taken(path):
            tensors |= portion.tensors
        return tensors

    def portions(self, path: Path) -> Iterator[dict[str, Tensor]]:
        """Hand a file out in its portions, once.

        Yields:
            The tensors of a portion, as from `tensors`. The dictionary is emptied when the next one is asked for, and
            with it goes the memory unless the caller keeps a tensor.

        Raises:
            KeyError, ModelUnavailable, Cancelled: see `tensors`.
        """
        for portion in self._taken(path):
            yield portion.tensors
            portion.tensors.clear()

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

    def _taken(self, path: Path) -> Iterator[Arrived]:
        file = self._files.pop(path)
        self._count(file.header.start, self._started)
        while not file.is_done:
            portion = file.take()
            self._sink.join()
            self._count(portion.bytes, portion.at)
            yield portion
            file.begin()

    def _count(self, size: int, arrived: float) -> None:
        with self._lock:
            self._stats = Stats(self._stats.bytes + size, max(self._stats.seconds, arrived - self._started))


def folder_tensors(weights_of: Callable[[Path], Weights], folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Wait for every tensor of a model folder, and make them `dtype`.

    Args:
        weights_of: what hands out a file.

    Raises:
        ModelUnavailable: a shard is missing or damaged, or there is none, or a tensor holds something else than
            floating point numbers.
    """
    tensors: dict[str, Tensor] = {}
    for shard in shards(folder):
        for name, tensor in weights_of(shard).tensors(shard).items():
            if not tensor.is_floating_point():
                found = str(tensor.dtype).removeprefix("torch.")
                raise FileError(f"{file_name(shard)}: tensor {show(name)} is {found}, expected floating point; {CHECK}")
            tensors[name] = tensor.to(dtype)
    return tensors
