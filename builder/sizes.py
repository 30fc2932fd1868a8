"""What a bake will weigh, from the catalog and the architecture alone: nothing is fetched, nothing is imported."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from qwen_edit.store.catalog import CHECKPOINTS, Checkpoint
from qwen_edit.svdq.modules import TensorSpec, expected_tensors, total_bytes

BF16 = 2
"""Bytes a parameter of the base model takes."""

CONFIGS = 20_000_000
"""Configurations and tokenizers of the base model, rounded: two vocabularies and a fast tokenizer are nearly all."""

RUNTIME = 7_500_000_000
"""An estimate that a built image can correct: Python, torch with its CUDA libraries, and the other packages."""


@dataclass(frozen=True)
class Size:
    """One part: its bytes, and what they are counted from."""

    name: str
    bytes: int
    source: str


def sizes() -> tuple[Size, ...]:
    """The parts of a bake, each under the name that `--components` takes."""
    language, vision, vae = Language().parameters, Vision().parameters, Autoencoder().parameters
    return (
        Size("configs", CONFIGS, "configurations and tokenizers, rounded"),
        Size("text_encoder", BF16 * (language + vision), f"Qwen2.5-VL-7B, {language + vision:,} parameters in bf16"),
        Size("vae", BF16 * vae, f"AutoencoderKLQwenImage, {vae:,} parameters in bf16"),
        *(_checkpoint(row) for row in CHECKPOINTS),
    )


def table() -> str:
    """The parts, their sum and the container image, a line each."""
    parts = sizes()
    baked = Size("all of it", sum(part.bytes for part in parts), "what MODEL_CACHE_DIR holds")
    image = Size(
        "image", baked.bytes + RUNTIME, f"with about {RUNTIME / 1e9:.1f} GB of Python, torch and CUDA: an estimate"
    )
    return "\n".join(_lines((*parts, baked, image)))


def header_bytes(tensors: dict[str, TensorSpec]) -> int:
    """Length of a safetensors header that declares `tensors` and has no metadata, its 8-byte length included."""
    end = 0
    header = {}
    for name, spec in tensors.items():
        header[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [end, end + spec.bytes]}
        end += spec.bytes
    return 8 + len(json.dumps(header, separators=(",", ":")))


def _checkpoint(row: Checkpoint) -> Size:
    tensors = expected_tensors({}, row.rank)
    tensor_bytes = total_bytes(tensors)
    source = f"{len(tensors):,} tensors of {tensor_bytes:,} bytes at rank {row.rank}, and a header"
    return Size(row.name, tensor_bytes + header_bytes(tensors), source)


def _lines(rows: tuple[Size, ...]) -> Iterator[str]:
    width = max(len(row.name) for row in rows)
    for row in rows:
        yield f"{row.name:<{width}}  {row.bytes / 1e9:>7.3f} GB  {row.source}"


@dataclass(frozen=True)
class Language:
    """The language model of Qwen2.5-VL-7B, by the numbers of its config.json; the head is not tied."""

    hidden: int = 3584
    layers: int = 28
    intermediate: int = 18944
    heads: int = 28
    key_value_heads: int = 4
    vocabulary: int = 152064

    @property
    def parameters(self) -> int:
        embedding_and_head = 2 * self.vocabulary * self.hidden
        return embedding_and_head + self.layers * self._layer() + self.hidden

    def _layer(self) -> int:
        key_value = self.key_value_heads * self.hidden // self.heads
        attention = linear(self.hidden, self.hidden) + 2 * linear(self.hidden, key_value) + self.hidden**2
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden


@dataclass(frozen=True)
class Vision:
    """The vision tower of Qwen2.5-VL-7B. A patch is `frames` pictures deep; the merger joins `merge`² patches."""

    hidden: int = 1280
    depth: int = 32
    intermediate: int = 3420
    out: int = 3584
    patch: int = 14
    frames: int = 2
    merge: int = 2

    @property
    def parameters(self) -> int:
        patches = 3 * self.frames * self.patch**2 * self.hidden
        merged = self.merge**2 * self.hidden
        merger = self.hidden + linear(merged, merged) + linear(merged, self.out)
        return patches + self.depth * self._block() + merger

    def _block(self) -> int:
        attention = linear(self.hidden, 3 * self.hidden) + linear(self.hidden, self.hidden)
        mlp = 2 * linear(self.hidden, self.intermediate) + linear(self.intermediate, self.hidden)
        return attention + mlp + 2 * self.hidden


@dataclass(frozen=True)
class Autoencoder:
    """Qwen-Image's VAE, `AutoencoderKLQwenImage` with its default configuration: causal 3-D convolutions.

    `temporal` says of each change of resolution, as the encoder meets them, whether it also changes the frame rate.
    """

    width: int = 96
    latent: int = 16
    multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)

    @property
    def parameters(self) -> int:
        quantization = linear(2 * self.latent, 2 * self.latent) + linear(self.latent, self.latent)
        return self._encoder() + quantization + self._decoder()

    def _encoder(self) -> int:
        widths = [self.width * multiple for multiple in (1, *self.multiples)]
        stages = pairwise(widths)
        blocks = sum(_residual(before, after) + (self.blocks - 1) * _residual(after, after) for before, after in stages)
        resampled = zip(widths[1:], self.temporal, strict=False)
        down = sum(_square(width, width) + temporal * linear(3 * width, width) for width, temporal in resampled)
        ends = _cube(3, self.width) + widths[-1] + _cube(widths[-1], 2 * self.latent)
        return ends + blocks + down + _middle(widths[-1])

    def _decoder(self) -> int:
        widths = [self.width * multiple for multiple in (self.multiples[-1], *reversed(self.multiples))]
        ends = _cube(self.latent, widths[0]) + widths[-1] + _cube(widths[-1], 3)
        # An upsampler halves the channels, so each stage but the first begins with half of the one before.
        first = [widths[0], *(width // 2 for width in widths[1:-1])]
        stages = zip(first, widths[1:], strict=True)
        blocks = sum(_residual(before, after) + self.blocks * _residual(after, after) for before, after in stages)
        resampled = zip(widths[1:], reversed(self.temporal), strict=False)
        up = sum(_square(width, width // 2) + temporal * linear(3 * width, 2 * width) for width, temporal in resampled)
        return ends + blocks + up + _middle(widths[0])


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias, or of a convolution whose taps are counted in `inputs`."""
    return (inputs + 1) * outputs


def _cube(inputs: int, outputs: int) -> int:
    return linear(27 * inputs, outputs)


def _square(inputs: int, outputs: int) -> int:
    return linear(9 * inputs, outputs)


def _residual(inputs: int, outputs: int) -> int:
    """Two norms and two convolutions, and a pointwise shortcut where the channels change."""
    shortcut = linear(inputs, outputs) if inputs != outputs else 0
    return inputs + _cube(inputs, outputs) + outputs + _cube(outputs, outputs) + shortcut


def _middle(width: int) -> int:
    """Two residual blocks around one attention."""
    return 2 * _residual(width, width) + width + linear(width, 3 * width) + linear(width, width)
