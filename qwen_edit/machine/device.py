"""Where the model runs, and in which precision. Of this folder, this module alone imports torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend

from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.machine.backend import Card
from qwen_edit.machine.compiler import require_compiler
from qwen_edit.machine.engine import find_engine
from qwen_edit.machine.gpu_memory import MemoryWay, OffloadName, sizes_of
from qwen_edit.machine.host_memory import available_bytes
from qwen_edit.machine.setup import Choice, choose_setup
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.fp8 import quantize_rows, row_product

DRIVER = Path("/dev/nvidiactl")
"""NVIDIA's driver on Linux: it is there in each container that was given a GPU."""

KERNELS = {
    SDPBackend.CUDNN_ATTENTION: "cudnn",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.MATH: "math",
}


@dataclass(frozen=True)
class MachineSetup:
    """Where and how the model runs on this machine. On the CPU there is no way to choose for the memory.

    `attention` is the kernel that PyTorch takes for the transformer's, for the log. `stays` are the bytes of the text
    encoder and of the transformer that may stay on the device in the other's turn.
    """

    device: torch.device
    choice: Choice
    memory: MemoryWay | None
    attention: str | None = None
    stays: tuple[int, int] = (0, 0)

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
            **({"attention": self.attention} if self.attention else {}),
            **{name: round(size / 1e9, 1) for name, size in peaks.items()},
            **({"stays_gb": [round(size / 1e9, 1) for size in self.stays]} if any(self.stays) else {}),
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
    choice, memory = choose_setup(settings, card, find_engine(), sizes, available_bytes())
    if choice.backend == "dense-fp8" and card:
        require_row_product(device, card)
    stays = memory.stays(card.free) if memory and card else (0, 0)
    return MachineSetup(device, choice, memory, attention_kernel(device), stays)


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
        ModelUnavailable: a GPU is asked for or evidently meant, and there is none that PyTorch can use.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if settings.device == "cuda":
        raise ModelUnavailable("QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device")
    if sign := settings.gpu_sign or _driver_sign():
        raise ModelUnavailable(
            f"a GPU is meant to serve here, because {sign}, but PyTorch finds no CUDA device; "
            "mend its driver, or set QWEN_EDIT_DEVICE=cpu to serve on the CPU"
        )
    return torch.device("cpu")


def _driver_sign() -> str | None:
    return f"{DRIVER} exists" if DRIVER.exists() else None


def require_row_product(device: torch.device, card: Card) -> None:
    """Multiply two small matrices in fp8 as a layer does, before anything is read for it.

    Whether a GPU of compute capability 12.x does so depends on the CUDA that PyTorch was built with (pytorch issue
    192707).

    Raises:
        ModelUnavailable: it does not.
    """
    rows, scales = quantize_rows(torch.ones(32, 3072, dtype=torch.bfloat16, device=device))
    weight, weight_scale = quantize_rows(torch.ones(3072, 3072, dtype=torch.bfloat16, device=device))
    try:
        row_product(rows, scales, weight, weight_scale, torch.zeros_like(weight_scale[:, 0]).bfloat16(), torch.bfloat16)
        wait_for(device)
    except RuntimeError as error:
        raise ModelUnavailable(
            f"QWEN_EDIT_BACKEND is dense-fp8, but PyTorch {torch.__version__} does not multiply in fp8 by rows on "
            f"{card}: {str(error).splitlines()[0][:120]}; set QWEN_EDIT_BACKEND=dense, or take a build for CUDA 12.8"
        ) from error


def attention_kernel(device: torch.device) -> str | None:
    """What PyTorch takes for a tensor like the transformer's, as `cudnn 9.19.0` or `flash`; None where it cannot be
    asked.
    """
    try:
        heads = torch.empty(1, 24, 256, 128, dtype=choose_dtype(device), device=device)
        name = KERNELS.get(SDPBackend(torch._fused_sdp_choice(heads, heads, heads)))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return None
    version = torch.backends.cudnn.version() if name == "cudnn" else None  # type: ignore[no-untyped-call]
    return name if version is None else f"{name} {version // 10000}.{version // 100 % 100}.{version % 100}"


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, as the weights are; float32 on the CPU, where it is as fast and more exact."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def device_name(device: torch.device) -> str:
    """What the reply calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def memory_bytes(device: torch.device) -> dict[str, int]:
    """What PyTorch's allocator has on a GPU, and what is free there for anybody; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "gpu_allocated_bytes": torch.cuda.memory_allocated(device),
        "gpu_free_bytes": free,
        "gpu_total_bytes": total,
    }


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
