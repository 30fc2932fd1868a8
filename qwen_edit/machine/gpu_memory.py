"""The sizes of the model, and the peaks of each way to run it, predicted from the files' headers. No torch here.

The figures are computed, not measured: the weights exactly, the rest by `python -m bench.gpu.activations`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_edit.machine.backend import BackendName
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import AWQ_MODULES, block_prefix
from qwen_edit.weights import header
from qwen_edit.weights.placement import WINDOW

FILE_ITEMSIZE = 2
"""Bytes of a value in the base model's weight files, which are bfloat16."""

OffloadName = Literal["none", "model", "blocks"]
"""`none`: all is on the device. `model`: the text encoder and the transformer take turns on it, and wait in the host's
memory. `blocks`: as `model`, and of the transformer's blocks a few at a time are there, which the engine sees to."""

PROMPT_BYTES = 300_000_000
ENCODE_BYTES = 2_100_000_000
DENOISE_BYTES = 1_300_000_000
DECODE_BYTES = 3_700_000_000
TILED_BYTES = 300_000_000
"""What the stages of an edit of 1024 × 1024 pixels take beside the weights, as `python -m bench.gpu.activations`
computes it and rounded up: the text encoder, the VAE's encoding, a step, the VAE's decoding, and the VAE in tiles."""

HEADROOM_BYTES = 1_500_000_000
"""For what is not computed: the code of cuBLAS, cuDNN and the attention, which CUDA loads when it is first used, 0.3 to
0.7 GB together; their workspaces, of which a convolution of 1024 × 1024 × 96 values takes 0.2 to 0.8 GB; the
allocator's gaps; the temporaries of an expansion. By their sources and sizes, not measured."""

BLOCKS_ON_DEVICE = 3
"""With `blocks`: the first one stays, and two are a buffer, one of them filled while the other is computed."""


@dataclass(frozen=True)
class ModelSizes:
    """Bytes of the model's parts on a device.

    `transformer` is what a backend makes of the checkpoint; `resident` of it stay on the device while its blocks come
    and go, and these take `pinned` in the host's memory. `arriving` is what a dense backend has beside it at once while
    it expands the checkpoint.
    """

    backend: BackendName
    text_encoder: int
    vae: int
    transformer: int
    resident: int
    arriving: int
    pinned: int = 0

    @property
    def weights(self) -> int:
        """All of them together."""
        return self.text_encoder + self.vae + self.transformer


@dataclass(frozen=True)
class MemoryWay:
    """A way to run the model, and the peaks that it leads to, in bytes.

    `tiling` is whether the VAE works in tiles. `host` is what waits in the host's memory, pinned. An edit has a turn of
    the text encoder's, `encode`, and one of the transformer's, `denoise`.
    """

    backend: BackendName
    offload: OffloadName
    tiling: bool
    load: int
    encode: int
    denoise: int
    host: int

    @property
    def edit(self) -> int:
        return max(self.encode, self.denoise)

    @property
    def peak(self) -> int:
        return max(self.load, self.edit)

    def stays(self, free: int) -> tuple[int, int]:
        """Bytes of the text encoder and of the transformer that fit a card beside the other's turn.

        Args:
            free: bytes that the card had free before anything was loaded.
        """
        if self.offload == "none":
            return 0, 0
        in_turns = self.offload == "model"  # with `blocks` the engine sees to the transformer
        return max(0, free - max(self.denoise, self.load)), max(0, free - self.encode) if in_turns else 0


def weight_bytes(files: Iterable[Path], wanted: Callable[[str], bool] = lambda _name: True) -> int:
    """Bytes of the tensors of safetensors files, or of those among them whose names are wanted.

    Raises:
        FileError: the header of a file says that it is damaged.
    """
    tensors = (item for path in files for item in header.read(path).tensors.items())
    return sum(entry.bytes for name, entry in tensors if wanted(name))


def sizes_of(
    backend: BackendName,
    text_encoder: int,
    vae: int,
    checkpoint: CheckpointInfo,
    *,
    itemsize: int = FILE_ITEMSIZE,
) -> ModelSizes:
    """The sizes of a model for a backend.

    Args:
        text_encoder: bytes of its weights that are read, of `FILE_ITEMSIZE` each; see `weight_bytes`.
        vae: the same.
        checkpoint: the header of the checkpoint.
        itemsize: bytes of one dense weight on the device.
    """
    sizes = [entry.bytes for name, entry in checkpoint.tensors.items() if name.startswith(block_prefix(0))]
    block = sum(sizes)
    outside = checkpoint.packed_bytes - block * checkpoint.num_layers
    linear, _ = _quantized_parameters(checkpoint)
    # fp8 is quantized from a block in float32.
    expansion = 4 * linear // checkpoint.num_layers if backend == "dense-fp8" else 0
    return ModelSizes(
        backend=backend,
        text_encoder=text_encoder * itemsize // FILE_ITEMSIZE,
        vae=vae * itemsize // FILE_ITEMSIZE,
        transformer=_transformer(backend, checkpoint, itemsize),
        resident=outside + min(BLOCKS_ON_DEVICE, checkpoint.num_layers) * block,
        arriving=expansion + WINDOW * block,
        # The engine pins tensor by tensor, which PyTorch rounds up to a power of two; the first block stays.
        pinned=sum(map(_power_of_two, sizes)) * (checkpoint.num_layers - 1),
    )


def memory_way(sizes: ModelSizes, offload: OffloadName, *, tiling: bool) -> MemoryWay:
    """The peaks that an offload leads to, with the VAE in tiles or not."""
    beside = sizes.vae + HEADROOM_BYTES
    encode, denoise = _turns(sizes, offload, tiling=tiling)
    return MemoryWay(
        backend=sizes.backend,
        offload=offload,
        tiling=tiling,
        load=_load(sizes, offload) + beside,
        encode=encode + beside,
        denoise=denoise + beside,
        host=_host(sizes, offload),
    )


def _host(sizes: ModelSizes, offload: OffloadName) -> int:
    waiting = {"none": 0, "model": sizes.transformer, "blocks": sizes.pinned}[offload]
    return waiting + (0 if offload == "none" else sizes.text_encoder)


def _load(sizes: ModelSizes, offload: OffloadName) -> int:
    """Beside the VAE. The dense backends expand the checkpoint on the device, whatever waits elsewhere afterwards."""
    text_encoder = sizes.text_encoder if offload == "none" else 0
    if sizes.backend != "nunchaku":
        return text_encoder + sizes.transformer + sizes.arriving
    return text_encoder + {"none": sizes.transformer, "model": 0, "blocks": sizes.resident}[offload]


def _turns(sizes: ModelSizes, offload: OffloadName, *, tiling: bool) -> tuple[int, int]:
    """Beside the VAE: the larger of the prompt and the picture's encoding, and of a step and the decoding."""
    encode, decode = (TILED_BYTES, TILED_BYTES) if tiling else (ENCODE_BYTES, DECODE_BYTES)
    if offload == "none":
        both = sizes.text_encoder + sizes.transformer
        return both + max(PROMPT_BYTES, encode), both + max(DENOISE_BYTES, decode)
    transformer = sizes.resident if offload == "blocks" else sizes.transformer
    staying = sizes.resident if offload == "blocks" else 0
    # The text encoder stays for the picture's encoding, which comes between the two turns.
    return staying + sizes.text_encoder + max(PROMPT_BYTES, encode), transformer + max(DENOISE_BYTES, decode)


def _transformer(backend: BackendName, checkpoint: CheckpointInfo, itemsize: int) -> int:
    """Bytes of the transformer as a backend holds it; a dense one keeps the modulations as they are in the file.

    Without biases, norms and the scales of fp8: under 0.1 %.
    """
    if backend == "nunchaku":
        return checkpoint.packed_bytes
    linear, modulation = _quantized_parameters(checkpoint)
    others = checkpoint.dense_parameters - linear - modulation
    packed = sum(entry.bytes for name, entry in checkpoint.tensors.items() if _is_modulation(name))
    return linear * (1 if backend == "dense-fp8" else itemsize) + packed + others * itemsize


def _quantized_parameters(checkpoint: CheckpointInfo) -> tuple[int, int]:
    """Parameters of the attention and the MLPs, and of the modulations: two in each byte."""
    of = {False: 0, True: 0}
    for name, entry in checkpoint.tensors.items():
        if name.endswith(".qweight"):
            of[_is_modulation(name)] += 2 * entry.bytes
    return of[False], of[True]


def _is_modulation(name: str) -> bool:
    return any(f".{module}." in name for module in AWQ_MODULES)


def _power_of_two(size: int) -> int:
    """The least that is not smaller."""
    return 1 << (size - 1).bit_length()
