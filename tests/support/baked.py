"""Repositories as the hub publishes them, with weights of kilobytes: real headers, the production's names."""

import hashlib
import json
import random
import struct
from collections.abc import Mapping
from pathlib import Path

from builder.bake import record
from qwen_edit.store import catalog
from qwen_edit.store.manifest import Entry, Manifest
from qwen_edit.svdq.modules import TensorSpec, expected_tensors
from tests.support.loopback_hub import Repository

BASE_COMMIT = "a" * 40
CHECKPOINTS_COMMIT = "b" * 40
SHARDS = [f"text_encoder/model-{number:05}-of-00004.safetensors" for number in (1, 2, 3, 4)]
VAE = "vae/diffusion_pytorch_model.safetensors"
INDEX = "text_encoder/model.safetensors.index.json"
LIGHTNING = catalog.LIGHTNING.file
ORIGINAL = catalog.ORIGINAL.file

# One block one head wide: the smallest transformer that the format allows.
CONFIG = {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 64}


def repositories() -> dict[str, Repository]:
    """Both repositories that a bake reads, with files beside those that it wants."""
    return {
        catalog.BASE_REPOSITORY: Repository(base_files(), BASE_COMMIT),
        catalog.CHECKPOINT_REPOSITORY: Repository(checkpoint_files(), CHECKPOINTS_COMMIT),
    }


def base_files() -> dict[str, bytes]:
    """The base model, its transformer weights and pictures included."""
    tokenizer = {"vocab.json": b"{}", "merges.txt": b"#version: 0.2\n", "tokenizer_config.json": b"{}"}
    shards = {path: weights(number, f"layer.{number}") for number, path in enumerate(SHARDS)}
    return {
        "README.md": b"# readme",
        ".gitattributes": b"* text",
        "images/edit.png": b"\x89PNG",
        "model_index.json": b'{"_class_name": "QwenImageEditPipeline"}',
        "scheduler/scheduler_config.json": b"{}",
        **{f"{folder}/{name}": data for folder in ("tokenizer", "processor") for name, data in tokenizer.items()},
        "processor/preprocessor_config.json": b"{}",
        "processor/chat_template.jinja": b"{{ messages }}",
        "text_encoder/config.json": b'{"model_type": "qwen2_5_vl"}',
        INDEX: _index(),
        **shards,
        "vae/config.json": b"{}",
        VAE: weights(9, "decoder"),
        "transformer/config.json": json.dumps(CONFIG).encode(),
        "transformer/diffusion_pytorch_model-00001-of-00009.safetensors": b"never fetched",
        "transformer/diffusion_pytorch_model.safetensors.index.json": b"{}",
    }


def checkpoint_files() -> dict[str, bytes]:
    """The served checkpoints, and one that is not served."""
    return {
        "README.md": b"# readme",
        LIGHTNING: checkpoint(1),
        ORIGINAL: checkpoint(2),
        "svdq-int4_r32-qwen-image-edit.safetensors": b"never fetched",
    }


def weights(seed: int, name: str, kilobytes: int = 300) -> bytes:
    """A safetensors file of two tensors."""
    half = kilobytes * 512
    header = {
        f"{name}.{i}": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [i * half, (i + 1) * half]}
        for i in (0, 1)
    }
    return safetensors_header(header) + random.Random(seed).randbytes(2 * half)


def checkpoint(seed: int, rank: int = catalog.RANK) -> bytes:
    """A checkpoint of `CONFIG` with random bytes for tensors."""
    tensors = expected_tensors(CONFIG, rank)
    return checkpoint_header(tensors, CONFIG) + random.Random(seed).randbytes(
        sum(spec.bytes for spec in tensors.values())
    )


def checkpoint_header(tensors: dict[str, TensorSpec], config: dict[str, int]) -> bytes:
    """The header of a checkpoint file, its length first."""
    quantization = {"method": "svdquant", "weight": {"dtype": "int4", "group_size": 64}}
    metadata = {"config": json.dumps(config), "quantization_config": json.dumps(quantization)}
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, spec in tensors.items():
        header[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [end, end + spec.bytes]}
        end += spec.bytes
    return safetensors_header(header)


def write(folder: Path) -> Manifest:
    """A whole model directory, as a bake leaves it."""
    base = {f"{catalog.BASE_FOLDER}/{path}": data for path, data in wanted(base_files()).items()}
    checkpoints = {f"{catalog.CHECKPOINT_FOLDER}/{path}": data for path, data in wanted(checkpoint_files()).items()}
    for path, data in (base | checkpoints).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    manifest = Manifest(
        tuple(_entry(path, data, catalog.BASE_REPOSITORY, BASE_COMMIT) for path, data in base.items())
        + tuple(
            _entry(path, data, catalog.CHECKPOINT_REPOSITORY, CHECKPOINTS_COMMIT) for path, data in checkpoints.items()
        )
    )
    record.write(folder, manifest)
    return manifest


def wanted(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a repository that serving needs."""
    left_out = ("README", ".git", "images/", "transformer/diffusion", "svdq-int4_r32")
    return {path: data for path, data in files.items() if not path.startswith(left_out)}


def _entry(path: str, data: bytes, repository: str, commit: str) -> Entry:
    return Entry(path, len(data), hashlib.sha256(data).hexdigest(), repository, commit)


def _index() -> bytes:
    names = {f"layer.{number}.{i}": Path(path).name for number, path in enumerate(SHARDS) for i in (0, 1)}
    return json.dumps({"metadata": {"total_size": 4 * 2 * 300 * 512}, "weight_map": names}).encode()


def safetensors_header(header: Mapping[str, object]) -> bytes:
    """The frame of a safetensors file: the length of its header, and the header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
