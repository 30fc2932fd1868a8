"""Opens a checkpoint and checks it before anything is built from it. No torch here: the header alone says enough."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_edit.errors import ModelUnavailable
from qwen_edit.store.documents import FileError, parse_object, show
from qwen_edit.svdq.modules import (
    CONFIG_DEFAULTS,
    RANK_TENSOR,
    TensorSpec,
    expected_tensors,
    top_level_tensors,
    total_bytes,
)
from qwen_edit.weights import header
from qwen_edit.weights.header import Header, TensorEntry

_MAX_LAYERS = 1024  # far above any real model; it keeps the list of expected tensors small
_MAX_SIZE = 2**20  # the same for every other number of a config


class CheckpointError(ModelUnavailable):
    """A checkpoint file cannot be used. The sentence names the file, the tensor and what was expected."""


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
    def packed_bytes(self) -> int:
        """Bytes of all tensors as they are in the file."""
        return sum(entry.bytes for entry in self.tensors.values())

    @property
    def dense_parameters(self) -> int:
        """Parameters of the stock transformer that the file expands to, but for biases and norms: under 0.1 %."""
        nibbles = sum(entry.bytes for name, entry in self.tensors.items() if name.endswith(".qweight")) * 2
        return nibbles + total_bytes(top_level_tensors(self.config)) // 2


def read_header(path: Path | str) -> CheckpointInfo:
    """Read the header of a checkpoint and check all that it declares; the tensors' values are not read.

    Raises:
        CheckpointError: the file is not there, is not whole, is of another format, or does not hold exactly the tensors
            of its own config.
    """
    path = Path(path)
    try:
        return _checked(header.read(path, path.name))
    except FileError as error:
        raise CheckpointError(error.sentence) from error


def _checked(file: Header) -> CheckpointInfo:
    name, metadata, tensors = file.file, file.metadata, file.tensors
    _check_metadata(name, metadata)
    config = _config(name, metadata)
    _check_quantization(name, metadata)
    rank = _rank(name, tensors)
    _check_tensors(name, tensors, expected_tensors(config, rank))
    return CheckpointInfo(name, config, rank, tensors, metadata)


def _check_metadata(name: str, metadata: Mapping[str, str]) -> None:
    for key in ("config", "quantization_config"):
        if key not in metadata:
            raise CheckpointError(f"{name}: metadata {key!r} is missing, expected a JSON object")


def _config(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The known fields; others are of older or newer models and change no tensor that this format holds."""
    stored = parse_object(name, "metadata 'config'", metadata["config"])
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
        raise CheckpointError(f"{name}: metadata 'config' has {field} {show(value)}, expected {expected}")


def _is_rope_axes(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 3:
        return False
    return all(_is_int(axis, 2, _MAX_SIZE) and axis % 2 == 0 for axis in value)


def _check_quantization(name: str, metadata: Mapping[str, str]) -> None:
    stored = parse_object(name, "metadata 'quantization_config'", metadata["quantization_config"])
    weight = stored.get("weight")
    weight = weight if isinstance(weight, dict) else {}
    for field, value, expected in (
        ("method", stored.get("method"), "svdquant"),
        ("weight.dtype", weight.get("dtype"), "int4"),
        ("weight.group_size", weight.get("group_size"), 64),
    ):
        if type(value) is not type(expected) or value != expected:
            raise CheckpointError(
                f"{name}: metadata 'quantization_config' has {field} {show(value)}, expected {expected!r}"
            )


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
            f"{name}: tensor {show(min(unknown))} ({len(unknown)} in all) is unknown, "
            f"expected only the {len(expected)} tensors of the file's config"
        )
    for tensor, entry in tensors.items():
        _check_tensor(name, tensor, entry, expected[tensor])


def _check_tensor(name: str, tensor: str, entry: TensorEntry, spec: TensorSpec) -> None:
    if entry.dtype != spec.dtype:
        raise CheckpointError(f"{name}: tensor {tensor!r} is {show(entry.dtype)}, expected {spec.dtype}")
    if entry.shape not in (spec.shape, spec.padded):
        raise CheckpointError(f"{name}: tensor {tensor!r} has shape {list(entry.shape)}, expected {list(spec.shape)}")


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
