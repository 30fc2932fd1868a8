"""The header of a safetensors file, read and checked. No torch here: the header alone says if the file is whole."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qwen_edit.store.documents import FileError, disk_errors, file_name, parse_object, show
from qwen_edit.store.files import open_file
from qwen_edit.weights.disk import fill

MAX_HEADER_BYTES = 100_000_000
"""The most that the safetensors library reads as a header."""

ITEM_BYTES: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 1),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
        **dict.fromkeys(("U32", "I32", "F32"), 4),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
    }
)
"""The dtypes of the format and the bytes of one value, but for those of less than a byte, which no weights here use."""

_LENGTH_BYTES = 8
_MAX_SIZE = 2**63 - 1
_MAX_DIMENSIONS = 64


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: its safetensors dtype, declared shape, first byte in the file and length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """A checked header.

    `file` is what errors call the file. `tensors` are in the order in which they lie in the file, one after the other
    from byte `start` to its end at `size`. `metadata` is unparsed, and empty where the file has none.
    """

    file: str
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    start: int
    size: int


def read(path: Path, name: str | None = None) -> Header:
    """Read and check the header of the file at `path`; the tensors' values are not read.

    Args:
        name: what errors call the file; its folder and name where left out.

    Raises:
        FileError: the file is not there, is not whole or is no safetensors file.
    """
    name = name or file_name(path)
    with disk_errors(name), open_file(path) as file:
        return parse(file.fileno(), name)


def parse(descriptor: int, name: str) -> Header:
    """Read and check the header of an open file.

    Args:
        name: what errors call the file.

    Raises:
        FileError: see `read`.
        OSError: the disk cannot be read.
    """
    size = os.fstat(descriptor).st_size
    text = _text(name, descriptor, size)
    header = parse_object(name, "the header", text)
    metadata = _metadata(name, header.pop("__metadata__", {}))
    start = _LENGTH_BYTES + len(text)
    entries = {tensor: _entry(name, tensor, item, start) for tensor, item in header.items()}
    return Header(name, metadata, _in_file_order(name, entries, start, size), start, size)


def _text(name: str, descriptor: int, size: int) -> bytes:
    if size < _LENGTH_BYTES:
        raise FileError(f"{name}: has {size} bytes, expected a safetensors file, which begins with an 8-byte length")
    length = int.from_bytes(_read(name, descriptor, 0, _LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise FileError(f"{name}: declares a header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if length > size - _LENGTH_BYTES:
        raise FileError(f"{name}: is cut short: has {size} bytes, expected more than its header's {length}")
    text = _read(name, descriptor, _LENGTH_BYTES, length)
    if not text.startswith(b"{"):
        raise FileError(f"{name}: the header begins with {text[:1]!r}, expected a JSON object")
    return text


def _read(name: str, descriptor: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    if (count := fill(descriptor, [memoryview(buffer)], offset)) < length:
        raise FileError(f"{name}: is cut short: ended at byte {offset + count} while its header was read")
    return bytes(buffer)


def _metadata(name: str, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{name}: the metadata is {show(metadata)}, expected an object of strings")
    return metadata


def _entry(name: str, tensor: str, item: object, start: int) -> TensorEntry:
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if item.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(dtype, str):
        raise FileError(f"{name}: tensor {show(tensor)} is not described, expected dtype, shape and data_offsets")
    if dtype not in ITEM_BYTES:
        raise FileError(f"{name}: tensor {show(tensor)} is {show(dtype)}, expected one of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or not _is_shape(shape):
        raise FileError(f"{name}: tensor {show(tensor)} has shape {show(shape)}, expected a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise FileError(f"{name}: tensor {show(tensor)} has offsets {show(offsets)}, expected two positions")
    if (length := offsets[1] - offsets[0]) != (needed := ITEM_BYTES[dtype] * math.prod(shape)):
        raise FileError(f"{name}: tensor {show(tensor)} has {length} bytes, expected {needed}")
    return TensorEntry(dtype, tuple(shape), start + offsets[0], length)


def _is_shape(sizes: list[object]) -> bool:
    """Whether a tensor can have these sizes; the strides of one without values must not overflow either."""
    if len(sizes) > _MAX_DIMENSIONS or not all(map(_is_size, sizes)):
        return False
    return math.prod(size for size in sizes if isinstance(size, int) and size) <= _MAX_SIZE


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def _in_file_order(name: str, entries: Mapping[str, TensorEntry], start: int, size: int) -> dict[str, TensorEntry]:
    """The tensors in file order; they must follow each other without a gap and end where the file ends."""
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].bytes)))
    end = start
    for tensor, entry in ordered.items():
        if entry.offset != end:
            raise FileError(f"{name}: tensor {show(tensor)} begins at byte {entry.offset}, expected {end}")
        end += entry.bytes
    if size != end:
        problem = "is cut short" if size < end else "has bytes after its last tensor"
        raise FileError(f"{name}: {problem}: has {size} bytes, expected {end}")
    return ordered
