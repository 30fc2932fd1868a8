"""Files that are being read, and a checkpoint that is expanded while it comes.

No diffusers and no transformers here: reading and expanding begin before they are imported.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from qwen_edit.model.transformer.expansion import BackendFormat, Expanded, expand, portions_of
from qwen_edit.store.folder import is_used
from qwen_edit.svdq.checkpoint import read_header
from qwen_edit.weights.file import Portions
from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import Sink


class IncomingModel:
    """The files of a model and a checkpoint on their way to the device. Close it, or use it in a `with`."""

    def __init__(
        self,
        files: dict[Path, torch.device],
        checkpoint: tuple[Path, torch.device],
        form: BackendFormat,
        dtype: torch.dtype,
        sink_at: Callable[[torch.device], Sink],
    ) -> None:
        """Start, in the order of the files, the checkpoint last.

        Args:
            files: where each is to go.
            checkpoint: likewise.
            form: what the checkpoint is expanded to.
            dtype: the same.
            sink_at: what takes the bytes that go there. Where it raises, whoever waits for the file or the checkpoint
                gets the error.

        Raises:
            ModelUnavailable: a file is missing or damaged.
        """
        path, place = checkpoint
        self.info = read_header(path)
        self._places = {**files, path: place}
        portions = {path: portions_of(self.info, form)}
        with ExitStack() as opened:
            # Ends last: it waits for what it expands, which stops once that is not read any more.
            expanding = opened.enter_context(ThreadPoolExecutor(1, thread_name_prefix="expand"))
            self._weights = {
                device: opened.enter_context(self._reading(device, portions, sink_at(device)))
                for device in dict.fromkeys(self._places.values())
            }
            packed = self._weights[place].portions(path)
            self._expanded = expanding.submit(expand, self.info, packed, form, dtype)
            self._opened = opened.pop_all()

    def weights_of(self, file: Path) -> Weights:
        """What hands a file out."""
        return self._weights[self._places[file]]

    def expanded(self) -> Expanded:
        """Wait for the checkpoint; see `expand` for what is raised."""
        return self._expanded.result()

    @property
    def read_bytes(self) -> int:
        """Of the tensors that have been handed out."""
        return sum(weights.stats.bytes for weights in self._weights.values())

    @property
    def read_seconds(self) -> float:
        """Until the last of them had arrived."""
        return max(weights.stats.seconds for weights in self._weights.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._opened.close()
        del self._expanded  # a failure would hold on to this object, and so to half a checkpoint

    def _reading(self, device: torch.device, portions: Mapping[Path, Portions], sink: Sink) -> Weights:
        """Begin to read the files that go to a device."""
        files = [path for path, place in self._places.items() if place == device]
        return Weights(files, device, portions=portions, wanted=is_used, sink=sink)
