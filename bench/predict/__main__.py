"""What each card of `docs/operations.md` would take: loads, a step, an edit and the peak of memory. All is predicted.

    python -m bench.predict [--disk-gb-s 2] [--card H100]

An edit is one picture of 1024 × 1024 pixels, 8 steps without guidance. Operations and bytes are counted from the
published dimensions, rates are the published ones, the shares of them that are reached are assumed. Memory is the
worker's own plan. Nothing here was measured; `python -m bench.gpu` prints what a GPU measures over what this predicts.
The assumptions are printed below the tables. `--card` prints one card with every way to run a step.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.gpu.memory import LINES, TEXT_ENCODER_BYTES, VAE_BYTES, real_checkpoint, real_sizes, way_of
from bench.predict import cards, seconds
from bench.predict.arithmetic import (
    TEXT_TOKENS,
    attention_flops,
    linear_flops,
    low_rank_flops,
    moved_bytes,
    shape_of,
)
from bench.predict.cards import RATES
from bench.predict.seconds import RANK, STEPS, TOKENS, Prediction, Run, moves, predict, step_of, variants
from qwen_edit.machine.gpu_memory import MemoryWay
from qwen_edit.svdq.modules import CONFIG_DEFAULTS

CUDNN_CARDS = ("H100", "H200", "B200")
"""Of capability 9.0 and 10.0; see `compared.CUDNN_CAPABILITIES`."""

SHOWN = ("H100", "H200", "L40S", "RTX 4090")
"""The cards whose ways to run a step the documentation compares."""

_HEAD = """\
| GPU | backend | load, disk {disk:g} GB/s | load, cached | a step | an edit | peak GB |
|---|---|---|---|---|---|---|
"""
_STEPS_HEAD = """\
| GPU | run | products | attention | elementwise | a step | an edit |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """A card of the table, with the backend and the offload that it gets."""

    card: str
    way: MemoryWay

    @property
    def run(self) -> Run:
        """As the image runs it: with cuDNN's attention where PyTorch prefers it, with Triton's kernels, and not with
        the engine's fused product."""
        preferred = self.card.split()[0] in CUDNN_CARDS
        return Run(self.way.backend, "cudnn" if preferred else "flash", fused=self.way.backend != "nunchaku")


def cases() -> Iterator[Case]:
    """Every card of the documentation's table, in its order."""
    for line in LINES:
        for name in line.cards:
            small = name == "A100" and line.size == 40
            yield Case("A100 40 GB" if small else name, way_of(line))


def prediction(case: Case, run: Run, disk_gb_s: float = seconds.DISK_GB_S) -> Prediction:
    """Of the published model; the memory is the case's, so a run of another backend has that of `case`."""
    read = TEXT_ENCODER_BYTES + VAE_BYTES + real_checkpoint().packed_bytes
    return predict(case.card, run, case.way, real_sizes(run.backend), read, disk_gb_s)


def prediction_table(disk_gb_s: float = seconds.DISK_GB_S) -> str:
    """The documentation's table of predictions, in Markdown: seconds, and GB on the device."""
    rows = [_row(case, prediction(case, case.run, disk_gb_s)) for case in cases()]
    return _HEAD.format(disk=disk_gb_s) + "".join(rows)


def step_table(names: tuple[str, ...] = SHOWN) -> str:
    """The documentation's table of ways to run a step, in Markdown: milliseconds, and seconds of an edit."""
    rows: list[str] = []
    for name in names:
        case = next(case for case in cases() if case.card == name)
        for label, run in {"as the image runs it": case.run, **variants(case.run)}.items():
            if _runs(name, run):
                rows.append(_step_row(case, label, run))
    return _STEPS_HEAD + "".join(rows)


def assumptions() -> Iterator[str]:
    """What the tables stand on, in lines."""
    shape = shape_of(CONFIG_DEFAULTS, TOKENS)
    eager = moved_bytes(shape, moves(Run("dense")))
    fused = moved_bytes(shape, moves(Run("dense", fused=True)))
    yield (
        f"A step: {TOKENS} tokens, {TEXT_TOKENS} of them text; {linear_flops(shape) / 1e12:.1f} TFLOP in products, "
        f"{attention_flops(shape) / 1e12:.1f} in attention, {low_rank_flops(shape, RANK) / 1e12:.1f} in the low-rank "
        f"branch of int4; {eager / 1e9:.0f} GB moved by dense blocks beside their products, {fused / 1e9:.0f} with "
        f"Triton's kernels, {moved_bytes(shape, moves(Run('nunchaku'))) / 1e9:.0f} by the engine's, "
        f"{moved_bytes(shape, moves(Run('dense', compiled=True))) / 1e9:.0f} by compiled ones."
    )
    yield (
        f"An edit: {STEPS} steps, {seconds.HOST_SECONDS} s of the host, the text encoder at {seconds.SMALL_PRODUCTS} "
        f"of the rate of large products, the VAE at {seconds.CONVOLUTIONS} of it; with offload all that waits crosses "
        f"PCIe once, at {cards.PCIE_SHARE} of its rate."
    )
    yield (
        f"A load: the longer of {seconds.IMPORT_SECONDS} s of imports ({seconds.ENGINE_SECONDS} s more with the "
        f"engine) and the reading, at {seconds.CACHED_GB_S:g} GB/s where the files are cached; pinned memory at "
        f"{seconds.PINNED_GB_S} GB/s; {seconds.LAST_SECONDS} s at the end."
    )
    yield (
        f"int4: {cards.INT4_SHARE} of its rate, on an A100 {cards.INT4_ON_A100} times the time of bfloat16. "
        "Attention is cuDNN's on H100, H200 and B200, flash attention 2 elsewhere, where nothing else is said."
    )
    yield "Expected error: 15 % on Hopper, 30 % elsewhere."


def rates_table() -> str:
    """The published rates in TFLOP/s and GB/s, the shares of them that are assumed, and which rates were read.

    None was read at the maker's own place: "read" names what stood in a copy by somebody else.
    """
    columns = ("GPU", "bf16", "fp8", "int4", "memory", "PCIe", "shares", "source", "read")
    rows: list[tuple[object, ...]] = [
        (
            *(name, *map(_rate, (card.bf16, card.fp8, card.int4, card.memory, card.pcie))),
            *(card.share.name, card.source, card.read),
        )
        for name, card in RATES.items()
    ]
    return _markdown(columns, rows)


def shares_table() -> str:
    """The shares of the published rates that are assumed, and why."""
    columns = ("shares", "product", "fp8", "flash", "cuDNN", "memory", "why")
    shares = {card.share.name: card.share for card in RATES.values()}
    rows: list[tuple[object, ...]] = [
        (name, *map(_rate, (share.product, share.fp8, share.flash, share.cudnn, share.memory)), share.why)
        for name, share in shares.items()
    ]
    return _markdown(columns, rows)


def main() -> None:
    """Print the tables and what they stand on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk-gb-s", type=float, default=seconds.DISK_GB_S)
    parser.add_argument("--card", choices=sorted({case.card for case in cases()}))
    options = parser.parse_args()
    if options.card:
        print(step_table((options.card,)))
        return
    print("Predicted, not measured. Seconds, and GB on the device.\n")
    print(prediction_table(options.disk_gb_s))
    print("A step by what it goes into, ms; an edit, s.\n")
    print(step_table())
    print("\n".join(f"- {line}" for line in assumptions()), end="\n\n")
    print("Published rates without sparsity, TFLOP/s and GB/s, and the shares of them that are assumed.\n")
    print(rates_table())
    print(shares_table(), end="")


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _rate(value: float) -> str:
    return f"{value:g}" if value else "–"


def _runs(card: str, run: Run) -> bool:
    try:
        step_of(card, run)
    except ValueError:
        return False
    return True


def _row(case: Case, predicted: Prediction) -> str:
    offload = "" if case.way.offload == "none" else f", offload {case.way.offload}"
    return (
        f"| {case.card} | {case.run.backend}{offload} | {predicted.load:.0f} | {predicted.load_cached:.1f} "
        f"| {predicted.step.total:.2f} | {predicted.edit:.1f} | {predicted.peak / 1e9:.1f} |\n"
    )


def _step_row(case: Case, label: str, run: Run) -> str:
    predicted = prediction(case, run)
    parts = (predicted.step.products, predicted.step.attention, predicted.step.elementwise, predicted.step.total)
    cells = " | ".join(f"{1000 * part:.0f}" for part in parts)
    return f"| {case.card} | {label} | {cells} | {predicted.edit:.1f} |\n"


if __name__ == "__main__":
    main()
