"""The GPUs, and which backend of the transformer runs on which. Facts alone; `setup` decides. No torch here."""

from dataclasses import dataclass
from typing import Literal

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


def no_bfloat16(card: Card | None) -> str | None:
    """Why no backend runs on a device; None where one does. A device that is None is the CPU, here and below."""
    if card is None or card.vendor != "NVIDIA" or card.capability >= FIRST_WITH_BFLOAT16:
        return None
    return (
        f"the GPU {card.name} has compute capability {_dotted(card.capability)}, "
        f"expected {_dotted(FIRST_WITH_BFLOAT16)} or later: it has no bfloat16"
    )


def no_int4(card: Card | None) -> str | None:
    """Why Nunchaku's int4 kernels do not run on a device; None where they do."""
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


def no_fp8(card: Card | None) -> str | None:
    """Why a device cannot take this fp8; None where it can.

    The CPU can: it computes the same, slowly, for development and tests.
    """
    if card is None:
        return None
    if card.vendor != "NVIDIA":
        return f"the {card.vendor} GPU {card.name} has not been tried with it"
    if card.capability < FIRST_WITH_FP8:
        return f"{card} has no fp8 tensor cores, which begin with {_dotted(FIRST_WITH_FP8)}"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
