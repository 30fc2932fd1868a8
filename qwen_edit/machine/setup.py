"""Every way to run the model, in order of preference, and the first that suits a machine. No torch here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import SLOW_INT4, BackendName, Card, no_bfloat16, no_fp8, no_int4
from qwen_edit.machine.engine import FUSED_PRODUCT, HOW_TO_INSTALL, Engine
from qwen_edit.machine.gpu_memory import MemoryWay, ModelSizes, OffloadName, memory_way
from qwen_edit.machine.host_memory import is_enough, require_enough
from qwen_edit.settings import Backend, Settings

Sizes = Callable[[BackendName], ModelSizes]
"""The sizes of the model for a backend."""

WAYS: tuple[tuple[BackendName, OffloadName], ...] = (
    ("dense", "none"),
    ("dense", "model"),
    ("nunchaku", "none"),
    ("nunchaku", "model"),
    ("nunchaku", "blocks"),
    ("dense-fp8", "none"),
    ("dense-fp8", "model"),
)
"""Every backend with every offload that it can do, in order of preference.

`dense` comes before `nunchaku` for the cards where int4 is slow; where int4 is fast, `auto` allows only one of the two.
"""

_WAY_OUT = "leave it out or set dense"


@dataclass(frozen=True)
class Choice:
    """What runs and why, for the log. `warning` is a sentence for the replies where the better one could not run."""

    backend: BackendName
    reason: str
    warning: str | None = None


def ways(sizes: Sizes) -> list[MemoryWay]:
    """Each of `WAYS`, with the memory that it takes: first with pictures whole in the VAE, then in tiles."""
    of = {backend: sizes(backend) for backend, _ in WAYS}
    return [memory_way(of[backend], offload, tiling=tiling) for backend, offload in WAYS for tiling in (False, True)]


def choose_setup(
    settings: Settings, card: Card | None, engine: Engine, sizes: Sizes, host: int | None = None
) -> tuple[Choice, MemoryWay | None]:
    """The first way that the card, the engine and the settings allow and that fits the card.

    The host's memory has to suffice for that way. It takes no part in the choice, because where it is too small an
    offload that fits may be faster than the next way, and the error names it.

    Args:
        card: None is the CPU, which has no way to choose for its memory.
        host: bytes of the host's memory that are available; None is unknown, and enough.

    Raises:
        ModelUnavailable: the settings ask for what cannot run here, or nothing fits.
    """
    _require_runnable(settings.backend, card, engine)
    if card is None:
        return _on_cpu(settings, sizes, host)
    rows = ways(sizes)
    allowed = [way for way in rows if _is_allowed(way.backend, settings.backend, card, engine)]
    taken = next((way for way in allowed if _is_wanted(way, settings, card) and way.peak <= card.free), None)
    backend = taken.backend if taken else allowed[-1].backend  # the last of them needs the least
    _require_backend_of_switches(settings, backend)
    _require_fused_product(settings, engine)
    if taken is None:
        raise ModelUnavailable(_why_none_fits(settings, card, engine, backend, rows, host))
    own = [way for way in rows if way.backend == backend]
    waiting = f"the weights that wait with offload {taken.offload}"
    require_enough(taken.host, host, waiting, _other_than_offload(own, card, host))
    return _choice(settings.backend, card, engine, backend), taken


def _require_runnable(asked: Backend, card: Card | None, engine: Engine) -> None:
    if fault := no_bfloat16(card):
        raise ModelUnavailable(fault)
    faults = {
        "auto": [],
        "nunchaku": [(no_int4(card), _WAY_OUT), (engine.fault, HOW_TO_INSTALL)],
        "dense-fp8": [(no_fp8(card), _WAY_OUT)],
        "dense": [],
    }
    for fault, remedy in faults[asked]:
        if fault:
            raise ModelUnavailable(f"QWEN_EDIT_BACKEND is {asked}, but {fault}; {remedy}")


def _require_backend_of_switches(settings: Settings, backend: BackendName) -> None:
    if settings.compiled and backend == "nunchaku":
        raise ModelUnavailable(
            "QWEN_EDIT_COMPILE is 1, but the nunchaku backend runs, whose blocks are the engine's and not compiled; "
            "leave it out or set QWEN_EDIT_BACKEND=dense"
        )
    if settings.fused_qkv and backend != "nunchaku":
        raise ModelUnavailable(
            f"QWEN_EDIT_FUSED_QKV is 1, but the {backend} backend runs, which does without the engine's kernels; "
            "leave it out or set QWEN_EDIT_BACKEND=nunchaku"
        )


def _require_fused_product(settings: Settings, engine: Engine) -> None:
    if settings.fused_qkv and not engine.has_fused_product:
        raise ModelUnavailable(
            f"QWEN_EDIT_FUSED_QKV is 1, but nunchaku {engine.version} has no nunchaku.ops.fused.{FUSED_PRODUCT}; "
            "leave it out or install release 1.2.1"
        )


def _is_allowed(backend: BackendName, asked: Backend, card: Card, engine: Engine) -> bool:
    """Whether a backend may run.

    `auto` never allows `dense-fp8`: neither its speed nor its loss of quality has been measured on a GPU.
    """
    if asked != "auto":
        return backend == asked
    runs_int4 = no_int4(card) is None
    if backend == "nunchaku":
        return runs_int4 and engine.fault is None
    return backend == "dense" and not (runs_int4 and engine.fault is None and card.capability not in SLOW_INT4)


def _is_wanted(way: MemoryWay, settings: Settings, card: Card) -> bool:
    """Whether the offload is the one that is asked for.

    Where that is left open, `dense` stands in for Nunchaku's int4 kernels only if all of it fits.
    """
    if settings.offload != "auto":
        return way.offload == settings.offload
    stands_in = settings.backend == "auto" and way.backend == "dense" and no_int4(card) is None
    return way.offload == "none" or not stands_in


def _on_cpu(settings: Settings, sizes: Sizes, host: int | None) -> tuple[Choice, None]:
    if settings.offload in ("model", "blocks"):
        raise ModelUnavailable(
            f"QWEN_EDIT_OFFLOAD is {settings.offload}, which saves the memory of a GPU, and there is none; "
            "leave it out or set none"
        )
    choice = _as_asked(settings.backend) or Choice("dense", f"dense: {no_int4(None)}")
    _require_backend_of_switches(settings, choice.backend)
    need = sizes(choice.backend).weights
    require_enough(need, host, "the weights on the CPU", "take a host with more memory, or a GPU")
    return choice, None


def _as_asked(asked: Backend) -> Choice | None:
    return None if asked == "auto" else Choice(asked, f"{asked}: QWEN_EDIT_BACKEND asks for it")


def _choice(asked: Backend, card: Card, engine: Engine, backend: BackendName) -> Choice:
    """Say why a backend was chosen."""
    if choice := _as_asked(asked):
        return choice
    if why_not := no_int4(card):
        return Choice("dense", f"dense: {why_not}")
    if backend == "nunchaku":
        kernels = "the dense model does not fit" if card.capability in SLOW_INT4 else "it has int4 tensor cores"
        return Choice("nunchaku", f"nunchaku: {card}: {kernels}")
    if card.capability in SLOW_INT4:
        return Choice("dense", f"dense: it fits, and on {card} Nunchaku's int4 kernels are the slower ones")
    warning = f"{card} would run Nunchaku's int4 kernels, but {engine.fault}, so the dense backend runs"
    return Choice("dense", f"dense: {warning}; {HOW_TO_INSTALL}", warning)


def _why_none_fits(
    settings: Settings, card: Card, engine: Engine, backend: BackendName, rows: Sequence[MemoryWay], host: int | None
) -> str:
    """The sentence for a card that none of the ways of a backend fits, with what would fit it."""
    if settings.backend == "auto" and no_int4(card) is None and engine.fault:
        return _why_not_without_engine(card, engine.fault, rows, host)
    own = [way for way in rows if way.backend == backend]
    tried = [way for way in own if settings.offload in ("auto", way.offload)]
    if not tried:
        return (
            f"QWEN_EDIT_OFFLOAD is {settings.offload}, which the {backend} backend does not do; "
            f"expected one of auto, {', '.join(dict.fromkeys(way.offload for way in own))}"
        )
    least = min(tried, key=lambda way: way.peak)
    fp8_would_do = settings.backend == "auto" and backend == "dense" and _fp8_fits(settings, card, rows)
    return (
        f"the {backend} backend needs {_gb(least.load)} on the device while it loads and {_gb(least.edit)} for "
        f"an edit of 1024 × 1024 pixels, with offload {least.offload}, and the GPU {card.name} has "
        f"{_gb(card.free)} free{'; QWEN_EDIT_BACKEND=dense-fp8 fits' if fp8_would_do else ''}"
    )


def _why_not_without_engine(card: Card, fault: str, rows: Sequence[MemoryWay], host: int | None) -> str:
    by_turns = any((way.backend, way.offload) == ("dense", "model") and _fits_both(way, card, host) for way in rows)
    without = "it fits only with QWEN_EDIT_OFFLOAD=model" if by_turns else "it does not fit"
    return (
        f"{card} runs this model with Nunchaku's int4 kernels, and without them {without}, "
        f"but {fault}; {f'set that, or {HOW_TO_INSTALL}' if by_turns else HOW_TO_INSTALL}"
    )


def _fp8_fits(settings: Settings, card: Card, rows: Sequence[MemoryWay]) -> bool:
    if no_fp8(card):
        return False
    fp8 = [way for way in rows if way.backend == "dense-fp8" and settings.offload in ("auto", way.offload)]
    return any(way.peak <= card.free for way in fp8)


def _other_than_offload(own: Sequence[MemoryWay], card: Card, host: int | None) -> str:
    """The remedy where the host's memory does not suffice for the offload that is asked for or chosen.

    Args:
        own: the ways of the backend.
    """
    for way in own:
        if _fits_both(way, card, host):
            return f"set QWEN_EDIT_OFFLOAD={way.offload}, which fits"
    return f"take a host with more memory, or a GPU with {_gb(own[0].peak)} free, which takes them all"


def _fits_both(way: MemoryWay, card: Card, host: int | None) -> bool:
    """Whether a way fits the card and the host's memory."""
    return way.peak <= card.free and is_enough(way.host, host)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
