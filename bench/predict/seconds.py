"""Seconds of a load, of a step and of an edit on a card, from operations, bytes and published rates. No torch here."""

from dataclasses import dataclass, replace

from bench.predict.arithmetic import (
    BLOCK,
    BLOCK_OF_TORCH,
    COMPILED,
    FUSED_PRODUCT,
    INPUTS,
    PATCHES,
    PICTURE_TOKENS,
    QUANTIZED_COMPILED,
    QUANTIZED_EAGER,
    STOCK,
    TEXT_TOKENS,
    Shape,
    attention_flops,
    decode_flops,
    encode_flops,
    linear_flops,
    low_rank_flops,
    moved_bytes,
    shape_of,
    text_encoder_flops,
)
from bench.predict.cards import INT4_ON_A100, INT4_SHARE, PCIE_SHARE, RATES, Attention, Rates
from qwen_edit.machine.backend import BackendName
from qwen_edit.machine.gpu_memory import MemoryWay, ModelSizes
from qwen_edit.svdq.modules import CONFIG_DEFAULTS

SIDE = 1024
STEPS = 8
TOKENS = 2 * PICTURE_TOKENS + TEXT_TOKENS
RANK = 128

SMALL_PRODUCTS = 0.6
"""Of the rate of large products, by the text encoder's smaller ones."""

CONVOLUTIONS = 0.12
"""The same by the VAE's convolutions with what lies between them: most of their time goes into memory."""

HOST_SECONDS = 0.14
"""Of an edit on the CPU: 0.09 to prepare picture and prompt (two slow cores), 0.05 for all that is small."""

IMPORT_SECONDS, ENGINE_SECONDS = 2.0, 0.7
"""Until the last import, measured on two cores with a CPU build; and the engine's own."""

LAST_SECONDS = 0.3
"""Of a load after the last byte or the last import, measured on two cores."""

DISK_GB_S, CACHED_GB_S = 2.0, 10.0
"""Of a disk, and of files that are in the page cache: assumptions, of which the first depends on the host."""

PINNED_GB_S = 5.6
"""At which a driver pins the memory of weights that wait in the host's: 28 GB in 5 s, an assumption."""


@dataclass(frozen=True)
class Run:
    """How the transformer runs.

    Attributes:
        fused: queries and keys are normed and rotated by one of Triton's kernels (dense), or at the end of the product
            that makes them (nunchaku).
    """

    backend: BackendName
    attention: Attention = "flash"
    compiled: bool = False
    fused: bool = False


@dataclass(frozen=True)
class Step:
    """Seconds of one step by what they go into."""

    products: float
    attention: float
    elementwise: float

    @property
    def total(self) -> float:
        return self.products + self.attention + self.elementwise


@dataclass(frozen=True)
class Prediction:
    """Seconds of loads, of a step and of an edit of 8 steps without guidance, and the peak of memory in bytes."""

    load: float
    load_cached: float
    step: Step
    edit: float
    peak: int

    def figures(self) -> dict[str, float]:
        """By the names that `bench.gpu` gives to the same figures."""
        return {"load": self.load_cached, "step": self.step.total, "edit": self.edit, "taken GB": self.peak / 1e9}


def predict(
    card: str, run: Run, way: MemoryWay, sizes: ModelSizes, read: int, disk_gb_s: float = DISK_GB_S
) -> Prediction:
    """What a card would take.

    Args:
        card: a key of `RATES`.
        way: how the model fits the card; see `qwen_edit.machine.setup.choose_setup`.
        sizes: of the model for the run's backend.
        read: bytes of the weight files that a start reads.
        disk_gb_s: of the disk that they come from.

    Raises:
        ValueError: the backend does not run on this card, or the weights wait block by block.
    """
    if way.offload == "blocks":
        raise ValueError("offload blocks is not predicted, expected none or model")
    rates = RATES[card]
    step = step_of(card, run)
    turns = way.host / (PCIE_SHARE * rates.pcie * 1e9)
    return Prediction(
        load=_load(way, read, run, rates, disk_gb_s),
        load_cached=_load(way, read, run, rates, CACHED_GB_S),
        step=step,
        edit=STEPS * step.total + _beside(rates, sizes) + turns,
        peak=way.peak,
    )


def step_of(card: str, run: Run, tokens: int = TOKENS) -> Step:
    """Seconds of one step over so many tokens of noise, picture and text together.

    Raises:
        ValueError: the backend does not run on this card.
    """
    rates, shape = RATES[card], shape_of(CONFIG_DEFAULTS, tokens)
    share = {"flash": rates.share.flash, "cudnn": rates.share.cudnn}[run.attention]
    return Step(
        products=_products(card, run, shape),
        attention=attention_flops(shape) / (share * rates.bf16 * 1e12),
        elementwise=moved_bytes(shape, moves(run)) / _memory(rates),
    )


def moves(run: Run) -> float:
    """How often a block moves an activation beside its products; see `arithmetic.STOCK`."""
    if run.backend == "nunchaku":
        # GELU is at the end of the engine's own product.
        left_out = ("GELU", *(FUSED_PRODUCT if run.fused else ()))
        return sum(moves for what, moves in STOCK.items() if what not in left_out)
    plain = COMPILED if run.compiled else BLOCK if run.fused else BLOCK_OF_TORCH
    quantized = QUANTIZED_COMPILED if run.compiled or run.fused else QUANTIZED_EAGER
    return sum(plain.values()) + (INPUTS * quantized if run.backend == "dense-fp8" else 0)


def variants(run: Run) -> dict[str, Run]:
    """The runs that differ from one in what waits for a figure, by what they change."""
    if run.backend == "nunchaku":
        return {"fused queries, keys and values": replace(run, fused=True)}
    return {
        "without Triton's kernels": replace(run, fused=False),
        "flash attention": replace(run, attention="flash"),
        "compiled": replace(run, compiled=True),
        "fp8": replace(run, backend="dense-fp8"),
        "fp8, compiled": replace(run, backend="dense-fp8", compiled=True),
    }


def _products(card: str, run: Run, shape: Shape) -> float:
    rates = RATES[card]
    operations, large = linear_flops(shape), rates.share.product * rates.bf16 * 1e12
    if run.backend == "dense":
        return operations / large
    if run.backend == "dense-fp8":
        if not rates.fp8:
            raise ValueError(f"{card} has no fp8 tensor cores")
        return operations / (rates.share.fp8 * rates.fp8 * 1e12)
    if not rates.int4:
        raise ValueError(f"{card} has no int4 tensor cores")
    if card.startswith("A100"):
        return INT4_ON_A100 * operations / large
    return operations / (INT4_SHARE * rates.int4 * 1e12) + low_rank_flops(shape, RANK) / large


def _beside(rates: Rates, sizes: ModelSizes) -> float:
    """Of an edit beside its steps: the host, the text encoder with its weights read once, and the VAE both ways."""
    large = rates.share.product * rates.bf16 * 1e12
    text = text_encoder_flops(TEXT_TOKENS, PATCHES) / (SMALL_PRODUCTS * large) + sizes.text_encoder / _memory(rates)
    return HOST_SECONDS + text + (encode_flops(SIDE) + decode_flops(SIDE)) / (CONVOLUTIONS * large)


def _load(way: MemoryWay, read: int, run: Run, rates: Rates, gb_s: float) -> float:
    """From process start: the longer of the imports and the reading, the pinning, and the end."""
    imports = IMPORT_SECONDS + (ENGINE_SECONDS if run.backend == "nunchaku" else 0)
    reading = read / min(gb_s * 1e9, PCIE_SHARE * rates.pcie * 1e9)
    return max(imports, reading) + way.host / (PINNED_GB_S * 1e9) + LAST_SECONDS


def _memory(rates: Rates) -> float:
    return rates.share.memory * rates.memory * 1e9
