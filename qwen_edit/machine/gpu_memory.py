"""What of the model is in the device's memory when, predicted from the files' headers. No torch here.

The figures are computed, not measured: the weights exactly, the rest by `python -m bench.activations`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import BackendName
from qwen_edit.settings import Offload
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import AWQ_MODULES, block_prefix
from qwen_edit.weights import header

OffloadName = Literal["none", "model", "blocks"]
"""`none`: all is on the device. `model`: the text encoder and the transformer take turns on it, and wait in the host's
memory. `blocks`: as `model`, and of the transformer's blocks a few at a time are there, which the engine sees to."""

OFFLOADS: Mapping[BackendName, tuple[OffloadName, ...]] = MappingProxyType(
    {"nunchaku": ("none", "model", "blocks"), "dense": ("none", "model"), "dense-fp8": ("none", "model")}
)
"""What each backend can do, the fastest first."""

PROMPT_BYTES = 300_000_000
ENCODE_BYTES = 2_100_000_000
DENOISE_BYTES = 1_300_000_000
DECODE_BYTES = 3_700_000_000
TILED_BYTES = 300_000_000
"""What the stages of an edit of 1024 × 1024 pixels take beside the weights, as `python -m bench.activations` computes
it and rounded up: the text encoder, the VAE's encoding, a step, the VAE's decoding, and the VAE in tiles."""

HEADROOM_BYTES = 1_000_000_000
"""For what is not computed: workspaces of the kernels, the allocator's gaps, the temporaries of an expansion."""

BLOCKS_ON_DEVICE = 3
"""With `blocks`: the first one stays, and two are a buffer, one of them filled while the other is computed."""


@dataclass(frozen=True)
class Parts:
    """Bytes of the model's parts on a device.

    `transformer` is what a backend makes of the checkpoint, of which `resident` stays on the device while its blocks
    come and go; these take `pinned` in the host's memory. `arriving` is what a dense backend has beside it at once
    while it expands the checkpoint.
    """

    backend: BackendName
    text_encoder: int
    vae: int
    transformer: int
    resident: int
    arriving: int
    pinned: int = 0


@dataclass(frozen=True)
class MemoryPlan:
    """What is done and the peaks it leads to, in bytes. `host` is what waits in the host's memory, pinned."""

    offload: OffloadName
    tiling: bool
    load: int
    edit: int
    host: int

    @property
    def peak(self) -> int:
        return max(self.load, self.edit)


def weight_bytes(files: Iterable[Path], wanted: Callable[[str], bool] = lambda _name: True) -> int:
    """Bytes of the tensors of safetensors files, or of those among them whose names are wanted.

    Raises:
        FileError: the header of a file says that it is damaged.
    """
    tensors = (item for path in files for item in header.read(path).tensors.items())
    return sum(entry.bytes for name, entry in tensors if wanted(name))


def parts_of(
    backend: BackendName,
    text_encoder: int,
    vae: int,
    checkpoint: CheckpointInfo,
    *,
    itemsize: int = 2,
    packed_modulation: bool = False,
    window: int | None = None,
) -> Parts:
    """The sizes of a model.

    Args:
        text_encoder: bytes of its weights as they are on the device.
        vae: the same.
        itemsize: bytes of one dense weight.
        packed_modulation: whether a dense backend keeps the modulation layers as they are in the file.
        window: how many blocks of the file are on the device at once while they are expanded; None is all of it.
    """
    sizes = [entry.bytes for name, entry in checkpoint.tensors.items() if name.startswith(block_prefix(0))]
    block = sum(sizes)
    weights = _weights_of(checkpoint)
    outside = checkpoint.packed_bytes - block * checkpoint.num_layers
    # fp8 is quantized from a block in float32.
    expanded = weights.linear + (0 if packed_modulation else weights.modulation)
    expansion = 4 * expanded // checkpoint.num_layers if backend == "dense-fp8" else 0
    return Parts(
        backend=backend,
        text_encoder=text_encoder,
        vae=vae,
        transformer=_transformer(backend, weights, itemsize, packed_modulation=packed_modulation),
        resident=outside + min(BLOCKS_ON_DEVICE, checkpoint.num_layers) * block,
        arriving=expansion + (checkpoint.packed_bytes if window is None else window * block),
        # The engine pins tensor by tensor, which PyTorch rounds up to a power of two; the first block stays.
        pinned=sum(map(_power_of_two, sizes)) * (checkpoint.num_layers - 1),
    )


def plan_memory(parts: Parts, free: int, asked: Offload, card: str) -> MemoryPlan:
    """The fastest plan that fits, or the one that is asked for.

    The VAE works in tiles only where it would not fit otherwise.

    Args:
        free: bytes that the device has left.
        card: what it is called in an error.

    Raises:
        ModelUnavailable: nothing fits, with the figures, or the backend cannot do what is asked for.
    """
    offloads = OFFLOADS[parts.backend]
    if asked != "auto" and asked not in offloads:
        raise ModelUnavailable(
            f"QWEN_EDIT_OFFLOAD is {asked}, which the {parts.backend} backend does not do; "
            f"expected one of auto, {', '.join(offloads)}"
        )
    plans = list(_plans(parts, offloads if asked == "auto" else (asked,)))
    for plan in plans:
        if plan.peak <= free:
            return plan
    least = min(plans, key=lambda plan: plan.peak)
    raise ModelUnavailable(
        f"the {parts.backend} backend needs {_gb(least.load)} on the device while it loads and {_gb(least.edit)} for "
        f"an edit of 1024 × 1024 pixels, with offload {least.offload}, and {card} has {_gb(free)} free"
    )


def fits(parts: Parts, free: int, asked: Offload) -> bool:
    """Whether the model fits in the way that is asked for; `auto` asks whether it is there as a whole."""
    try:
        plan_memory(parts, free, "none" if asked == "auto" else asked, "")
    except ModelUnavailable:
        return False
    return True


def _plans(parts: Parts, offloads: tuple[OffloadName, ...]) -> Iterator[MemoryPlan]:
    for offload in offloads:
        for tiling in (False, True):
            load = _load(parts, offload) + parts.vae + HEADROOM_BYTES
            edit = _edit(parts, offload, tiling=tiling) + parts.vae + HEADROOM_BYTES
            yield MemoryPlan(offload, tiling, load, edit, _host(parts, offload))


def _host(parts: Parts, offload: OffloadName) -> int:
    waiting = {"none": 0, "model": parts.transformer, "blocks": parts.pinned}[offload]
    return waiting + (0 if offload == "none" else parts.text_encoder)


def _load(parts: Parts, offload: OffloadName) -> int:
    """Beside the VAE. The dense backends expand the checkpoint on the device, whatever waits elsewhere afterwards."""
    text_encoder = parts.text_encoder if offload == "none" else 0
    if parts.backend != "nunchaku":
        return text_encoder + parts.transformer + parts.arriving
    return text_encoder + {"none": parts.transformer, "model": 0, "blocks": parts.resident}[offload]


def _edit(parts: Parts, offload: OffloadName, *, tiling: bool) -> int:
    """Beside the VAE: the largest of the prompt, the picture's encoding, a step and the decoding."""
    encode, decode = (TILED_BYTES, TILED_BYTES) if tiling else (ENCODE_BYTES, DECODE_BYTES)
    if offload == "none":
        return parts.text_encoder + parts.transformer + max(PROMPT_BYTES, encode, DENOISE_BYTES, decode)
    transformer = parts.resident if offload == "blocks" else parts.transformer
    staying = parts.resident if offload == "blocks" else 0
    # The text encoder stays for the picture's encoding, which comes between the two turns.
    return max(staying + parts.text_encoder + max(PROMPT_BYTES, encode), transformer + max(DENOISE_BYTES, decode))


@dataclass(frozen=True)
class _Weights:
    """Parameters of the attention and the MLPs, of the modulations and of the rest; bytes of a file and of the
    modulations in it. Without biases, norms and the scales of fp8: under 0.1 %."""

    linear: int
    modulation: int
    others: int
    packed_bytes: int
    modulation_bytes: int


def _weights_of(checkpoint: CheckpointInfo) -> _Weights:
    linear, modulation, modulation_bytes = 0, 0, 0
    for name, entry in checkpoint.tensors.items():
        is_modulation = any(f".{module}." in name for module in AWQ_MODULES)
        modulation_bytes += entry.bytes if is_modulation else 0
        if name.endswith(".qweight"):
            modulation += 2 * entry.bytes if is_modulation else 0
            linear += 0 if is_modulation else 2 * entry.bytes
    others = checkpoint.dense_parameters - linear - modulation
    return _Weights(linear, modulation, others, checkpoint.packed_bytes, modulation_bytes)


def _transformer(backend: BackendName, weights: _Weights, itemsize: int, *, packed_modulation: bool) -> int:
    """Bytes of the transformer as a backend holds it."""
    if backend == "nunchaku":
        return weights.packed_bytes
    linear = weights.linear * (1 if backend == "dense-fp8" else itemsize)
    modulation = weights.modulation_bytes if packed_modulation else weights.modulation * itemsize
    return linear + modulation + weights.others * itemsize


def _power_of_two(size: int) -> int:
    """The least that is not smaller."""
    return 1 << (size - 1).bit_length()


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
