"""Where the model runs, and in which precision. Of this folder, this module alone imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.machine.backend import Card
from qwen_edit.machine.compiler import require_compiler
from qwen_edit.machine.engine import find_engine
from qwen_edit.machine.gpu_memory import MemoryWay, OffloadName, sizes_of
from qwen_edit.machine.host_memory import available_bytes
from qwen_edit.machine.setup import Choice, choose_setup
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class MachineSetup:
    """Where and how the model runs on this machine. On the CPU there is no way to choose for the memory."""

    device: torch.device
    choice: Choice
    memory: MemoryWay | None

    @property
    def offload(self) -> OffloadName:
        return self.memory.offload if self.memory else "none"

    @property
    def tiling(self) -> bool:
        """Whether the VAE works in tiles."""
        return self.memory is not None and self.memory.tiling

    def log_fields(self) -> dict[str, object]:
        """What the log says of it: the reason for the backend, and the peaks of memory that are expected, in GB."""
        memory = self.memory
        peaks = {"load_gb": memory.load, "edit_gb": memory.edit, "host_gb": memory.host} if memory else {}
        return {
            "backend": self.choice.backend,
            "reason": self.choice.reason,
            "offload": self.offload,
            "tiling": self.tiling,
            **{name: round(size / 1e9, 1) for name, size in peaks.items()},
        }


def set_up(settings: Settings, text_encoder: int, vae: int, checkpoint: CheckpointInfo) -> MachineSetup:
    """Choose device, backend and offload, and see that the model fits, before any of it is read.

    Args:
        text_encoder: bytes of its weights that are read; see `weight_bytes`.
        vae: the same.
        checkpoint: the header of the checkpoint that comes first.

    Raises:
        ModelUnavailable: the settings ask for what this machine does not have, or the model does not fit it.
    """
    device = find_device(settings)
    if settings.compiled:
        require_compiler(device.type)
    card = read_card(device) if device.type == "cuda" else None
    sizes = partial(
        sizes_of,
        text_encoder=text_encoder,
        vae=vae,
        checkpoint=checkpoint,
        itemsize=choose_dtype(device).itemsize,
    )
    return MachineSetup(device, *choose_setup(settings, card, find_engine(), sizes, available_bytes()))


def read_card(device: torch.device) -> Card:
    """What PyTorch knows of a GPU. Starts CUDA on it."""
    free, total = torch.cuda.mem_get_info(device)
    return Card(
        name=torch.cuda.get_device_name(device),
        capability=torch.cuda.get_device_capability(device),
        total=total,
        free=free,
        vendor="AMD" if torch.version.hip else "NVIDIA",
    )


def find_device(settings: Settings) -> torch.device:
    """The device that the settings ask for; left open, a GPU if there is one.

    Raises:
        ModelUnavailable: a GPU is asked for, and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelUnavailable("QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device")
    use_cuda = settings.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_cuda else "cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, as the weights are; float32 on the CPU, where it is as fast and more exact."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def device_name(device: torch.device) -> str:
    """What the reply calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_REFUSALS_ELSEWHERE = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors say where it is not PyTorch's allocator that gets no memory, but the driver or a library below it."""


@contextmanager
def out_of_memory(sentence: str) -> Iterator[None]:
    """Translate the device's refusal of memory.

    Raises:
        OutOfMemory: with the sentence.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _REFUSALS_ELSEWHERE):
            raise OutOfMemory(sentence) from error
        raise
