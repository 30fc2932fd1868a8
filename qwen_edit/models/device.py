"""Where the model runs, and in which precision."""

import torch

from qwen_edit.errors import ModelUnavailable
from qwen_edit.settings import Settings


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
