"""Where the model runs, and in which precision."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qwen_edit.backend import BackendName, Card, Choice, Engine, choose_backend, find_engine
from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.memory_plan import MemoryPlan, OffloadName, Parts, fits, parts_of, plan_memory
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo


@dataclass(frozen=True)
class Setup:
    """Where and how the model runs on this machine. The CPU has no plan for its memory."""

    device: torch.device
    choice: Choice
    memory: MemoryPlan | None

    @property
    def offload(self) -> OffloadName:
        return self.memory.offload if self.memory else "none"

    @property
    def tiling(self) -> bool:
        """Whether the VAE works in tiles."""
        return self.memory is not None and self.memory.tiling

    def log_fields(self) -> dict[str, object]:
        """What the log says of it: the reason for the backend, and the peaks of memory that are expected, in GB."""
        peaks = {} if self.memory is None else {"load_gb": self.memory.load / 1e9, "edit_gb": self.memory.edit / 1e9}
        return {
            "backend": self.choice.backend,
            "reason": self.choice.reason,
            "offload": self.offload,
            "tiling": self.tiling,
            **{name: round(size, 1) for name, size in peaks.items()},
        }


def set_up(
    settings: Settings,
    text_encoder: int,
    vae: int,
    checkpoint: CheckpointInfo,
    *,
    packed_modulation: bool,
    window: int | None,
) -> Setup:
    """Choose device, backend and offload, and see that the model fits, before any of it is read.

    Args:
        text_encoder: bytes of its weights that are read; see `weight_bytes`.
        vae: the same.
        checkpoint: the header of the checkpoint that comes first.
        packed_modulation: whether the dense backends keep the modulation layers as they are in the file.
        window: how many blocks of the file are on the device at once while they are expanded; None is all of it.

    Raises:
        ModelUnavailable: the settings ask for what this machine does not have, or the model does not fit it.
    """

    def parts(backend: BackendName) -> Parts:
        return parts_of(backend, text_encoder, vae, checkpoint, packed_modulation=packed_modulation, window=window)

    device = _device(settings)
    if settings.compiled and device.type == "cuda":
        _require_c_compiler()
    card = read_card(device) if device.type == "cuda" else None
    return Setup(device, *settle(settings, card, find_engine(), parts))


def _require_c_compiler() -> None:
    """torch.compile builds the launchers of its kernels with one, and fails in the first edit where there is none.

    Raises:
        ModelUnavailable: there is none.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise ModelUnavailable("QWEN_EDIT_COMPILE is 1, but there is no C compiler; install gcc or leave it out")


def settle(
    settings: Settings, card: Card | None, engine: Engine, parts: Callable[[BackendName], Parts]
) -> tuple[Choice, MemoryPlan | None]:
    """The backend and the plan for the memory that suit a card; None is the CPU.

    Args:
        parts: the sizes of the model for a backend.

    Raises:
        ModelUnavailable: see `choose_backend` and `plan_memory`.
    """
    dense_fits = card is None or fits(parts("dense"), card.free, settings.offload)
    choice = choose_backend(card, engine, settings.backend, dense_fits=dense_fits)
    if card is not None:
        return choice, _plan(settings, card, choice.backend, parts)
    if settings.offload in ("model", "blocks"):
        raise ModelUnavailable(
            f"QWEN_EDIT_OFFLOAD is {settings.offload}, which saves the memory of a GPU, and there is none; "
            "leave it out or set none"
        )
    return choice, None


def _plan(settings: Settings, card: Card, backend: BackendName, parts: Callable[[BackendName], Parts]) -> MemoryPlan:
    try:
        return plan_memory(parts(backend), card.free, settings.offload, f"the GPU {card.name}")
    except ModelUnavailable as error:
        if settings.backend == "auto" and backend == "dense" and _fp8_would_do(settings, card, parts):
            raise ModelUnavailable(f"{error.sentence}; QWEN_EDIT_BACKEND=dense-fp8 fits") from error
        raise


def _fp8_would_do(settings: Settings, card: Card, parts: Callable[[BackendName], Parts]) -> bool:
    try:
        choose_backend(card, Engine(None, None), "dense-fp8", dense_fits=False)
        plan_memory(parts("dense-fp8"), card.free, settings.offload, card.name)
    except ModelUnavailable:
        return False
    return True


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


def _device(settings: Settings) -> torch.device:
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
