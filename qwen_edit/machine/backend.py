"""Which backend runs the transformer on a device, and why. No torch here."""

from dataclasses import dataclass
from typing import Literal

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.engine import HOW_TO_INSTALL, Engine
from qwen_edit.settings import Backend

BackendName = Literal["nunchaku", "dense", "dense-fp8"]

FIRST_WITH_BFLOAT16 = (8, 0)
"""Compute capability of Ampere, the first GPUs with bfloat16 in hardware."""

FIRST_WITH_FP8 = (8, 9)
"""Compute capability of Ada, the first GPUs with fp8 in their tensor cores."""

NUNCHAKU_INT4 = frozenset({(8, 0), (8, 6), (8, 9)})
"""Where the release wheels run int4 files in bfloat16. Hopper (9.0) and the data centre's Blackwell (10.x) have no int4
tensor cores, on the other Blackwells (12.x) the engine takes fp4 files alone."""

SLOW_INT4 = frozenset({(8, 0)})
"""Where the int4 kernels run, but slower than a dense product in bfloat16: 2.5 times on an A100."""


@dataclass(frozen=True)
class Card:
    """A GPU as PyTorch reports it; memory in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    vendor: Literal["NVIDIA", "AMD"] = "NVIDIA"

    def __str__(self) -> str:
        return f"the GPU {self.name} (compute capability {_dotted(self.capability)})"


@dataclass(frozen=True)
class Choice:
    """What runs and why, for the log. `warning` is a sentence for the replies where the better one could not run."""

    backend: BackendName
    reason: str
    warning: str | None = None


def choose_backend(
    card: Card | None, engine: Engine, asked: Backend, *, dense_fits: bool, dense_fits_offloaded: bool = False
) -> Choice:
    """Choose how the transformer runs.

    `auto` never chooses `dense-fp8`: neither its speed nor what it costs in quality has been measured on a GPU.

    Args:
        card: None is the CPU.
        asked: the setting.
        dense_fits: whether the dense model fits the card in the way that the settings ask for.
        dense_fits_offloaded: whether it does with `QWEN_EDIT_OFFLOAD=model`.

    Raises:
        ModelUnavailable: what is asked for does not run here, or nothing does.
    """
    if card is not None and card.vendor == "NVIDIA" and card.capability < FIRST_WITH_BFLOAT16:
        raise ModelUnavailable(
            f"the GPU {card.name} has compute capability {_dotted(card.capability)}, "
            f"expected {_dotted(FIRST_WITH_BFLOAT16)} or later: it has no bfloat16"
        )
    if asked == "auto":
        return _automatic(card, engine, dense_fits=dense_fits, dense_fits_offloaded=dense_fits_offloaded)
    return _as_asked(card, engine, asked)


def _as_asked(card: Card | None, engine: Engine, asked: BackendName) -> Choice:
    faults = {
        "nunchaku": [(_no_int4(card), _WAY_OUT), (engine.fault, HOW_TO_INSTALL)],
        "dense-fp8": [(_no_fp8(card), _WAY_OUT)],
        "dense": [],
    }
    for fault, remedy in faults[asked]:
        if fault:
            raise ModelUnavailable(f"QWEN_EDIT_BACKEND is {asked}, but {fault}; {remedy}")
    return Choice(asked, f"{asked}: QWEN_EDIT_BACKEND asks for it")


def _automatic(card: Card | None, engine: Engine, *, dense_fits: bool, dense_fits_offloaded: bool) -> Choice:
    why_not = _no_int4(card)
    if card is None or why_not:
        return Choice("dense", f"dense: {why_not}")
    if card.capability in SLOW_INT4 and dense_fits:
        return Choice("dense", f"dense: it fits, and on {card} Nunchaku's int4 kernels are the slower ones")
    if engine.fault is None:
        kernels = "the dense model does not fit" if card.capability in SLOW_INT4 else "it has int4 tensor cores"
        return Choice("nunchaku", f"nunchaku: {card}: {kernels}")
    if dense_fits:
        warning = f"{card} would run Nunchaku's int4 kernels, but {engine.fault}, so the dense backend runs"
        return Choice("dense", f"dense: {warning}; {HOW_TO_INSTALL}", warning)
    without = "it fits only with QWEN_EDIT_OFFLOAD=model" if dense_fits_offloaded else "it does not fit"
    raise ModelUnavailable(
        f"{card} runs this model with Nunchaku's int4 kernels, and without them {without}, "
        f"but {engine.fault}; {f'set that, or {HOW_TO_INSTALL}' if dense_fits_offloaded else HOW_TO_INSTALL}"
    )


_WAY_OUT = "leave it out or set dense"


def _no_int4(card: Card | None) -> str | None:
    """Why Nunchaku's int4 kernels do not run on a device, or None where they do."""
    if card is None:
        return "there is no GPU, which Nunchaku's kernels need"
    if card.vendor != "NVIDIA":
        return f"the {card.vendor} GPU {card.name} does not run Nunchaku's CUDA kernels"
    if card.capability in NUNCHAKU_INT4:
        return None
    if card.capability >= (12, 0):
        return f"on {card} Nunchaku runs fp4 files, not these int4 ones"
    if card.capability >= (9, 0):
        return f"{card} has no int4 tensor cores"
    return f"{card} is none that Nunchaku's wheels are built for"


def _no_fp8(card: Card | None) -> str | None:
    """Why a device cannot take this fp8. The CPU can: it computes the same, slowly, for development and tests."""
    if card is None:
        return None
    if card.vendor != "NVIDIA":
        return f"the {card.vendor} GPU {card.name} has not been tried with it"
    if card.capability < FIRST_WITH_FP8:
        return f"{card} has no fp8 tensor cores, which begin with {_dotted(FIRST_WITH_FP8)}"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
