"""Where the model runs, and in which precision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo

FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability of Ampere, the first GPUs with bfloat16 in hardware."""


def choose_device(settings: Settings) -> torch.device:
    """The device the settings ask for.

    Raises:
        ModelUnavailable: they ask for something this machine or this version does not have.
    """
    if settings.backend == "nunchaku":
        raise ModelUnavailable("QWEN_EDIT_BACKEND is nunchaku, which this version does not run yet; use auto or dense")
    if settings.offload == "model":
        raise ModelUnavailable("QWEN_EDIT_OFFLOAD is model, which this version does not do yet; use auto or none")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelUnavailable("QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device")
    if settings.device != "cpu" and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability()
        if capability < FIRST_WITH_BFLOAT16:
            raise ModelUnavailable(
                f"the GPU {torch.cuda.get_device_name()} has compute capability {'.'.join(map(str, capability))}, "
                f"expected {'.'.join(map(str, FIRST_WITH_BFLOAT16))} or later: it has no bfloat16"
            )
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


def require_memory(device: torch.device, base: Sequence[Path], checkpoint: CheckpointInfo) -> None:
    """See that the model fits a GPU before it is read.

    At the peak there are the base model's weights, the packed checkpoint and what it expands to.

    Raises:
        ModelUnavailable: it does not fit, with both figures.
    """
    if device.type != "cuda":
        return
    needed = sum(path.stat().st_size for path in base) + checkpoint.packed_bytes
    needed += checkpoint.dense_parameters * choose_dtype(device).itemsize
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise ModelUnavailable(
            f"the model needs {needed / 1e9:.1f} GB on the device while it loads, and {device_name(device)} has "
            f"{free / 1e9:.1f} GB free"
        )


@contextmanager
def out_of_memory(sentence: str) -> Iterator[None]:
    """Translate the device's refusal of memory.

    Raises:
        OutOfMemory: with the sentence.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(sentence) from error
