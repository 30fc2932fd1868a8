"""Where the model runs, and in which precision."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.machine.backend import BackendName, Card, Choice, choose_backend
from qwen_edit.machine.engine import Engine, find_engine
from qwen_edit.machine.gpu_memory import OFFLOADS, MemoryPlan, OffloadName, Parts, fits, parts_of, plan_memory
from qwen_edit.machine.host_memory import available_bytes, is_enough, require_enough
from qwen_edit.settings import Settings
from qwen_edit.svdq.checkpoint import CheckpointInfo

FILE_ITEMSIZE = torch.bfloat16.itemsize
"""Bytes of a value in the base model's weight files."""


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
        memory = self.memory
        peaks = {"load_gb": memory.load, "edit_gb": memory.edit, "host_gb": memory.host} if memory else {}
        return {
            "backend": self.choice.backend,
            "reason": self.choice.reason,
            "offload": self.offload,
            "tiling": self.tiling,
            **{name: round(size / 1e9, 1) for name, size in peaks.items()},
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
        text_encoder: bytes of its weights that are read, of `FILE_ITEMSIZE` each; see `weight_bytes`.
        vae: the same.
        checkpoint: the header of the checkpoint that comes first.
        packed_modulation: whether the dense backends keep the modulation layers as they are in the file.
        window: how many blocks of the file are on the device at once while they are expanded; None is all of it.

    Raises:
        ModelUnavailable: the settings ask for what this machine does not have, or the model does not fit it.
    """
    device = _device(settings)
    itemsize = choose_dtype(device).itemsize

    def parts(backend: BackendName) -> Parts:
        return parts_of(
            backend,
            text_encoder * itemsize // FILE_ITEMSIZE,
            vae * itemsize // FILE_ITEMSIZE,
            checkpoint,
            itemsize=itemsize,
            packed_modulation=packed_modulation,
            window=window,
        )

    if settings.compiled:
        _require_compiler(device.type)
    card = read_card(device) if device.type == "cuda" else None
    return Setup(device, *settle(settings, card, find_engine(), parts, available_bytes()))


def _require_compiler(device: str) -> None:
    """torch.compile builds its kernels for a CPU, or their launchers for a GPU, and fails in the first edit without.

    Raises:
        ModelUnavailable: there is no compiler that it would find.
    """
    if device == "cpu":
        language, package, found = "C++", "g++", shutil.which(os.environ.get("CXX", "g++"))
    else:
        language, package, found = "C", "gcc", os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise ModelUnavailable(
            f"QWEN_EDIT_COMPILE is 1, but there is no {language} compiler; install {package} or leave it out"
        )


def settle(
    settings: Settings,
    card: Card | None,
    engine: Engine,
    parts: Callable[[BackendName], Parts],
    host: int | None = None,
) -> tuple[Choice, MemoryPlan | None]:
    """The backend and the plan for the memory that suit a card; None is the CPU.

    Args:
        parts: the sizes of the model for a backend.
        host: bytes of the host's memory that are available; None is unknown, and enough.

    Raises:
        ModelUnavailable: see `choose_backend` and `plan_memory`; or the host's memory does not suffice.
    """
    if card is None:
        return _settle_on_cpu(settings, engine, parts, host)
    dense = parts("dense")
    choice = choose_backend(
        card,
        engine,
        settings.backend,
        dense_fits=fits(dense, card.free, settings.offload),
        dense_fits_offloaded=_fits_both(dense, card, host, "model"),
    )
    _require_dense_to_compile(settings, choice.backend)
    plan = _plan(settings, card, choice.backend, parts)
    way_out = _other_than_offload(parts(choice.backend), card, host)
    require_enough(plan.host, host, f"the weights that wait with offload {plan.offload}", way_out)
    return choice, plan


def _settle_on_cpu(
    settings: Settings, engine: Engine, parts: Callable[[BackendName], Parts], host: int | None
) -> tuple[Choice, None]:
    choice = choose_backend(None, engine, settings.backend, dense_fits=True)
    if settings.offload in ("model", "blocks"):
        raise ModelUnavailable(
            f"QWEN_EDIT_OFFLOAD is {settings.offload}, which saves the memory of a GPU, and there is none; "
            "leave it out or set none"
        )
    sizes = parts(choice.backend)
    need = sizes.text_encoder + sizes.vae + sizes.transformer
    require_enough(need, host, "the weights on the CPU", "take a host with more memory, or a GPU")
    return choice, None


def _require_dense_to_compile(settings: Settings, backend: BackendName) -> None:
    if settings.compiled and backend == "nunchaku":
        raise ModelUnavailable(
            "QWEN_EDIT_COMPILE is 1, but the nunchaku backend runs, whose blocks are the engine's and not compiled; "
            "leave it out or set QWEN_EDIT_BACKEND=dense"
        )


def _other_than_offload(parts: Parts, card: Card, host: int | None) -> str:
    """What could be done where the host's memory does not suffice for the offload that is asked for or chosen."""
    for offload in OFFLOADS[parts.backend]:
        if _fits_both(parts, card, host, offload):
            return f"set QWEN_EDIT_OFFLOAD={offload}, which fits"
    whole = plan_memory(parts, sys.maxsize, "none", card.name).peak
    return f"take a host with more memory, or a GPU with {whole / 1e9:.1f} GB free, which takes them all"


def _fits_both(parts: Parts, card: Card, host: int | None, offload: OffloadName) -> bool:
    """Whether the model fits a card and the host's memory with an offload."""
    try:
        plan = plan_memory(parts, card.free, offload, card.name)
    except ModelUnavailable:
        return False
    return is_enough(plan.host, host)


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
