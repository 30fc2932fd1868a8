"""Opens a checkpoint and checks it before anything is built from it. No torch here: the header alone says enough."""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from qwen_edit.errors import ModelUnavailable
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, RANK_TENSOR, TensorSpec, expected_tensors, tensor_bytes

MAX_HEADER_BYTES = 100_000_000
"""The most that the safetensors library reads as a header."""

_MAX_LAYERS = 1024  # far above any real model; it keeps the list of expected tensors small
_MAX_SIZE = 2**20  # the same for every other number of a config
_MAX_OFFSET = 2**63 - 1


class CheckpointError(ModelUnavailable):
    """A checkpoint file cannot be used. The sentence names the file, the tensor and what was expected."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its safetensors dtype, declared shape, first byte in the file and length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class CheckpointInfo:
    """A checked file.

    `file` is its name without the directory. `config` holds what `QwenImageTransformer2DModel(**config)` takes,
    defaults filled in. `tensors` are in the order in which they lie in the file. `metadata` is the header's, unparsed.
    """

    file: str
    config: Mapping[str, Any]
    rank: int
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def num_layers(self) -> int:
        return int(self.config["num_layers"])

    @property
    def width(self) -> int:
        """Channels of the hidden state."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


def read_header(path: Path | str) -> CheckpointInfo:
    """Read the header of a checkpoint and check all that it declares; the tensors' values are not read.

    Raises:
        CheckpointError: the file is not there, is not whole, is of another format, or does not hold exactly the tensors
            of its own config.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            text = _header_text(path.name, file, size)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error.strerror}") from error
    header = _json_object(path.name, "the header", text)
    metadata = _metadata(path.name, header.pop("__metadata__", None))
    config = _config(path.name, metadata)
    _check_quantization(path.name, metadata)
    tensors = _entries(path.name, header, 8 + len(text))
    rank = _rank(path.name, tensors)
    _check_tensors(path.name, tensors, expected_tensors(config, rank))
    tensors = _check_places(path.name, tensors, 8 + len(text), size)
    return CheckpointInfo(path.name, config, rank, tensors, metadata)


def _header_text(name: str, file: BinaryIO, size: int) -> bytes:
    if size < 8:
        raise CheckpointError(
            f"{name}: has {size} bytes, expected a safetensors file, which begins with an 8-byte length"
        )
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{name}: declares a header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if length > size - 8:
        raise CheckpointError(f"{name}: is cut short: has {size} bytes, expected more than its header's {length}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{name}: the header begins with {text[:1]!r}, expected a JSON object")
    return text


def _json_object(name: str, what: str, text: bytes | str) -> dict[str, Any]:
    try:
        document = json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{name}: {what} cannot be read, expected a JSON object: {type(error).__name__}"
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{name}: {what} is {_show(document)}, expected a JSON object")
    return document


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def _metadata(name: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{name}: the metadata is {_show(metadata)}, expected an object of strings")
    for key in ("config", "quantization_config"):
        if key not in metadata:
            raise CheckpointError(f"{name}: metadata {key!r} is missing, expected a JSON object")
    return metadata


def _config(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The known fields; others are of older or newer models and change no tensor that this format holds."""
    stored = _json_object(name, "metadata 'config'", metadata["config"])
    config = {field: stored.get(field, default) for field, default in CONFIG_DEFAULTS.items()}
    for field, value in config.items():
        _check_field(name, field, value)
    if (width := config["num_attention_heads"] * config["attention_head_dim"]) % 128:
        raise CheckpointError(
            f"{name}: metadata 'config' has num_attention_heads · attention_head_dim = {width}, "
            "expected a multiple of 128"
        )
    if sum(config["axes_dims_rope"]) != config["attention_head_dim"]:
        raise CheckpointError(
            f"{name}: metadata 'config' has axes_dims_rope {config['axes_dims_rope']}, "
            f"expected a sum of {config['attention_head_dim']}, the attention_head_dim"
        )
    return config


def _check_field(name: str, field: str, value: object) -> None:
    if field == "axes_dims_rope":
        good, expected = _is_rope_axes(value), "three even integers"
    elif isinstance(CONFIG_DEFAULTS[field], bool):
        good, expected = isinstance(value, bool), "true or false"
    else:
        most = _MAX_LAYERS if field == "num_layers" else _MAX_SIZE
        good, expected = _is_int(value, 1, most), f"an integer from 1 to {most}"
        good = good or (field == "out_channels" and value is None)
    if not good:
        raise CheckpointError(f"{name}: metadata 'config' has {field} {_show(value)}, expected {expected}")


def _is_rope_axes(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(_is_int(axis, 2, _MAX_SIZE) and axis % 2 == 0 for axis in value)


def _check_quantization(name: str, metadata: Mapping[str, str]) -> None:
    stored = _json_object(name, "metadata 'quantization_config'", metadata["quantization_config"])
    weight = stored.get("weight")
    weight = weight if isinstance(weight, dict) else {}
    for field, value, expected in (
        ("method", stored.get("method"), "svdquant"),
        ("weight.dtype", weight.get("dtype"), "int4"),
        ("weight.group_size", weight.get("group_size"), 64),
    ):
        if type(value) is not type(expected) or value != expected:
            raise CheckpointError(
                f"{name}: metadata 'quantization_config' has {field} {_show(value)}, expected {expected!r}"
            )


def _entries(name: str, header: Mapping[str, Any], data: int) -> dict[str, TensorEntry]:
    return {tensor: _entry(name, tensor, item, data) for tensor, item in header.items()}


def _entry(name: str, tensor: str, item: object, data: int) -> TensorEntry:
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if item.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(dtype, str):
        raise CheckpointError(
            f"{name}: tensor {_show(tensor)} is not described, expected dtype, shape and data_offsets"
        )
    if not isinstance(shape, list) or len(shape) > 8 or not all(_is_int(size, 0, _MAX_OFFSET) for size in shape):
        raise CheckpointError(f"{name}: tensor {_show(tensor)} has shape {_show(shape)}, expected a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_int(at, 0, _MAX_OFFSET) for at in offsets):
        raise CheckpointError(f"{name}: tensor {_show(tensor)} has offsets {_show(offsets)}, expected two positions")
    return TensorEntry(dtype, tuple(shape), data + offsets[0], offsets[1] - offsets[0])


def _rank(name: str, tensors: Mapping[str, TensorEntry]) -> int:
    if RANK_TENSOR not in tensors:
        raise CheckpointError(f"{name}: tensor {RANK_TENSOR!r} is missing, expected BF16 of shape [K, R]")
    shape = tensors[RANK_TENSOR].shape
    if len(shape) != 2 or not 0 < shape[1] <= _MAX_SIZE or shape[1] % 16:
        raise CheckpointError(
            f"{name}: tensor {RANK_TENSOR!r} has shape {list(shape)}, expected [K, R] with R a multiple of 16"
        )
    return shape[1]


def _check_tensors(name: str, tensors: Mapping[str, TensorEntry], expected: Mapping[str, TensorSpec]) -> None:
    if missing := expected.keys() - tensors.keys():
        spec = expected[first := min(missing)]
        raise CheckpointError(
            f"{name}: tensor {first!r} is missing ({len(missing)} in all), "
            f"expected {spec.dtype} of shape {list(spec.shape)}"
        )
    if unknown := tensors.keys() - expected.keys():
        raise CheckpointError(
            f"{name}: tensor {_show(min(unknown))} ({len(unknown)} in all) is unknown, "
            f"expected only the {len(expected)} tensors of the file's config"
        )
    for tensor, entry in tensors.items():
        _check_tensor(name, tensor, entry, expected[tensor])


def _check_tensor(name: str, tensor: str, entry: TensorEntry, spec: TensorSpec) -> None:
    if entry.dtype != spec.dtype:
        raise CheckpointError(f"{name}: tensor {tensor!r} is {_show(entry.dtype)}, expected {spec.dtype}")
    if entry.shape not in (spec.shape, spec.padded):
        raise CheckpointError(f"{name}: tensor {tensor!r} has shape {list(entry.shape)}, expected {list(spec.shape)}")
    if entry.bytes != (needed := tensor_bytes(entry.dtype, entry.shape)):
        raise CheckpointError(f"{name}: tensor {tensor!r} has {entry.bytes} bytes, expected {needed}")


def _check_places(name: str, tensors: Mapping[str, TensorEntry], data: int, size: int) -> dict[str, TensorEntry]:
    """The tensors in file order; they must follow each other without a gap and end where the file ends."""
    ordered = dict(sorted(tensors.items(), key=lambda item: item[1].offset))
    end = data
    for tensor, entry in ordered.items():
        if entry.offset != end:
            raise CheckpointError(f"{name}: tensor {tensor!r} begins at byte {entry.offset}, expected {end}")
        end += entry.bytes
    if size != end:
        problem = "is cut short" if size < end else "has bytes after its last tensor"
        raise CheckpointError(f"{name}: {problem}: has {size} bytes, expected {end}")
    return ordered


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _show(value: object) -> str:
    """The value as it may stand in a sentence: it comes from a file, so it can be anything of any length."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= 100 else text[:100] + "…"
