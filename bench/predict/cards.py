"""What the cards are published to do, and what share of it a model of this kind is assumed to get. No torch here."""

import re
from dataclasses import dataclass
from typing import Literal

Attention = Literal["flash", "cudnn"]


@dataclass(frozen=True)
class Share:
    """Shares of the published rates that are assumed to be reached.

    Attributes:
        product: of large products in bfloat16.
        fp8: of the same in fp8, with a scale for each row.
        flash, cudnn: of the bfloat16 rate, by the attention of 9,587 tokens and heads of 128.
        memory: of the memory's rate, by kernels that work value by value.
        why: what stands behind them.
    """

    name: str
    product: float
    fp8: float
    flash: float
    cudnn: float
    memory: float
    why: str


HOPPER = Share(
    "Hopper",
    0.647,
    0.49,
    0.333,
    0.607,
    0.81,
    "640 of 989 TFLOP/s in bf16, flash attention 329 and cuDNN's 631 by "
    "pytorch/pytorch issue 142132, memory 2.7 of 3.35 TB/s",
)
BLACKWELL = Share(
    "data centre's Blackwell",
    0.647,
    0.49,
    0.165,
    0.607,
    0.81,
    "as Hopper, but flash attention 2 has none of the new tensor instructions: about 370 TFLOP/s",
)
AMPERE = Share("Ampere", 0.75, 0, 0.62, 0.62, 0.84, "flash attention 2 gets 194 TFLOP/s on an A100")
POWER_LIMITED = Share(
    "limited by power",
    0.60,
    0.60,
    0.47,
    0.47,
    0.87,
    "the published clock is above what the power allows: attention gets 170 TFLOP/s on an L40S",
)
HALVED = Share(
    "halved",
    0.90,
    0.85,
    0.90,
    0.90,
    0.87,
    "sums in float32 halve the published rate, so it is nearly reached",
)

INT4_SHARE = 0.24
"""Of the int4 rate, by the engine's products of 4-bit inputs and weights with a scale for each 64: its sums leave the
tensor cores for every group. An assumption: 352 TOP/s on an L40S."""

INT4_ON_A100 = 2.5
"""How many times the time of a bfloat16 product an int4 one takes on compute capability 8.0, as reported."""


@dataclass(frozen=True)
class Rates:
    """A card's published rates, without sparsity: TFLOP/s (TOP/s) of the tensor cores, GB/s of memory and of PCIe.

    Attributes:
        bf16: with sums in float32.
        fp8, int4: 0 where the card has none.
        pcie: in one direction.
        source: who publishes them.
        read: which of them were read in a copy of that by somebody else; the others are from memory.
    """

    bf16: float
    fp8: float
    int4: float
    memory: float
    pcie: float
    share: Share
    source: str
    read: str = "none"


PCIE_4, PCIE_5 = 32.0, 64.0
PCIE_SHARE = 0.78
"""Of PCIe's rate, by copies from pinned memory: 25 GB/s of 32."""

_SHEET = "NVIDIA's data sheet"
_GA102 = "NVIDIA's Ampere GA102 whitepaper"
_ADA = "NVIDIA's Ada whitepaper"
_GB202 = "NVIDIA's RTX Blackwell whitepaper"

RATES: dict[str, Rates] = {
    "A100 40 GB": Rates(312, 0, 1248, 1555, PCIE_4, AMPERE, _SHEET, read="all"),
    "A100": Rates(312, 0, 1248, 2039, PCIE_4, AMPERE, f"{_SHEET}, SXM 80 GB", read="all"),
    "RTX 3090": Rates(71, 0, 568, 936, PCIE_4, HALVED, _GA102),
    "A10": Rates(125, 0, 500, 600, PCIE_4, POWER_LIMITED, _SHEET, read="memory"),
    "A40": Rates(149.7, 0, 598.7, 696, PCIE_4, AMPERE, _SHEET, read="all"),
    "A6000": Rates(154.8, 0, 619.3, 768, PCIE_4, AMPERE, _GA102),
    "RTX 4090": Rates(165.2, 330.3, 1321.2, 1008, PCIE_4, HALVED, _ADA, read="all"),
    "L4": Rates(121, 242.5, 485, 300, PCIE_4, POWER_LIMITED, f"{_SHEET}; int4 is taken for twice int8", read="memory"),
    "L40": Rates(181.05, 362, 724, 864, PCIE_4, HALVED, _SHEET, read="all"),
    "L40S": Rates(
        362.05,
        733,
        1466,
        864,
        PCIE_4,
        POWER_LIMITED,
        f"{_SHEET}; int4 is taken for twice int8",
        read="bf16, fp8, memory",
    ),
    "RTX 6000 Ada": Rates(364.2, 728.5, 1457, 960, PCIE_4, POWER_LIMITED, _ADA),
    "H100": Rates(989.4, 1979, 0, 3350, PCIE_5, HOPPER, f"{_SHEET}, SXM", read="all"),
    "H200": Rates(989.4, 1979, 0, 4800, PCIE_5, HOPPER, f"{_SHEET}, SXM", read="all"),
    "B200": Rates(2250, 4500, 0, 7700, PCIE_5, BLACKWELL, f"{_SHEET}, HGX", read="all"),
    "RTX 5090": Rates(209.5, 419, 0, 1792, PCIE_5, HALVED, _GB202, read="memory"),
    "RTX PRO 6000": Rates(503.8, 1007.6, 0, 1792, PCIE_5, POWER_LIMITED, _GB202),
}
"""By the names of `bench.gpu.memory.CAPABILITIES`; the A100 of 40 GB has a slower memory than the one of 80.

None was read at the maker's own place: see `Rates.read`."""

OTHERS = {"PCIe", "NVL", "MIG", "D", "Laptop", "Max", "GH200"}
"""Words in the name that PyTorch gives a card of another make with other rates."""

SMALL_A100 = 60e9
"""Bytes between the two memories of an A100."""


def known(device: str, total: float) -> str | None:
    """The key of `RATES` for a card by the name that PyTorch gives it; None for one that is not listed.

    Args:
        total: bytes of its memory.
    """
    words = set(re.findall(r"[A-Za-z0-9]+", device))
    found = [name for name in RATES if set(name.split()) <= words]
    if not found or (words & OTHERS and "A100" not in words) or "MIG" in words:
        return None
    longest = max(found, key=len)
    return "A100 40 GB" if longest == "A100" and total < SMALL_A100 else longest
