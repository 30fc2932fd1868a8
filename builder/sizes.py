"""What a bake will weigh, from the catalog and the architecture alone: nothing is fetched, nothing is imported."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from builder.architecture import Autoencoder, Language, Vision
from qwen_edit.catalog import CHECKPOINTS, Checkpoint
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
