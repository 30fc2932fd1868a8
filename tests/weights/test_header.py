import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from qwen_edit.errors import ModelUnavailable
from qwen_edit.weights import header

Described = dict[str, Any]
A: Described = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B: Described = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
WHOLE: Described = {"a": A, "b": B}

on_disk = settings(
    # Each example writes its own file over the last one, as fast as the disk allows.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=200,
)


def written(folder: Path, text: bytes, data: int = 32, length: int | None = None) -> Path:
    path = folder / "vae" / "weights.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def described(folder: Path, tensors: Described, data: int = 32) -> Path:
    return written(folder, json.dumps(tensors).encode(), data)


def refusal(path: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        header.read(path)
    assert caught.value.sentence.startswith("vae/weights.safetensors: ")
    return caught.value.sentence


def accepts(path: Path) -> bool:
    with suppress(ModelUnavailable):
        header.read(path)
        return True
    return False


def test_a_whole_file_is_described_in_file_order(tmp_path: Path) -> None:
    found = header.read(described(tmp_path, {"b": B, "a": A, "__metadata__": {"format": "pt"}}))

    assert list(found.tensors) == ["a", "b"]
    assert found.tensors["b"] == header.TensorEntry("BF16", (4,), found.start + 24, 8)
    assert found.size == found.start + 32
    assert (found.file, found.metadata) == ("vae/weights.safetensors", {"format": "pt"})


def test_a_file_without_metadata_or_tensors_is_whole(tmp_path: Path) -> None:
    found = header.read(described(tmp_path, {}, data=0))

    assert (found.tensors, found.metadata) == ({}, {})


def test_tensors_without_values_may_lie_anywhere_between_others(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [24, 24]}

    assert list(header.read(described(tmp_path, {"b": B, "empty": empty, "a": A})).tensors) == ["a", "empty", "b"]


@pytest.mark.parametrize("dtype", header.ITEM_BYTES)
def test_a_value_of_each_dtype_has_the_size_that_safetensors_gives_it(dtype: str, tmp_path: Path) -> None:
    size = header.ITEM_BYTES[dtype]
    path = described(tmp_path, {"t": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}, 3 * size)

    header.read(path)
    with safe_open(path, framework="numpy") as file:
        assert list(file.keys()) == ["t"]


DAMAGES: dict[str, tuple[Described, str]] = {
    "metadata of numbers": ({**WHOLE, "__metadata__": {"format": 1}}, "the metadata is {'format': 1}"),
    "metadata null": ({**WHOLE, "__metadata__": None}, "the metadata is None, expected an object of strings"),
    "a number": ({**WHOLE, "b": 3}, "tensor 'b' is not described"),
    "a field too many": ({**WHOLE, "b": {**B, "stride": 1}}, "tensor 'b' is not described"),
    "no shape": ({**WHOLE, "b": {"dtype": "BF16", "data_offsets": [24, 32]}}, "tensor 'b' is not described"),
    "unknown dtype": ({**WHOLE, "b": {**B, "dtype": "I4"}}, "tensor 'b' is 'I4', expected one of BOOL, "),
    "negative size": ({**WHOLE, "b": {**B, "shape": [-4]}}, "tensor 'b' has shape [-4], expected a list of sizes"),
    "size true": ({**WHOLE, "b": {**B, "shape": [4, True]}}, "tensor 'b' has shape [4, True]"),
    "size a float": ({**WHOLE, "b": {**B, "shape": [4.0]}}, "tensor 'b' has shape [4.0]"),
    "endless sizes": ({**WHOLE, "b": {**B, "shape": [2**62, 2**62]}}, "tensor 'b' has shape"),
    "endless sizes of nothing": (
        {**WHOLE, "c": {"dtype": "I8", "shape": [2**40, 0, 2**40], "data_offsets": [0, 0]}},
        "tensor 'c' has shape",
    ),
    "endless dimensions": ({**WHOLE, "b": {**B, "shape": [4] + [1] * 64}}, "tensor 'b' has shape"),
    "one offset": ({**WHOLE, "b": {**B, "data_offsets": [24]}}, "tensor 'b' has offsets [24], expected two"),
    "negative offset": ({**WHOLE, "a": {**A, "data_offsets": [-24, 0]}}, "tensor 'a' has offsets [-24, 0]"),
    "huge offset": ({**WHOLE, "b": {**B, "data_offsets": [24, 2**63]}}, "tensor 'b' has offsets"),
    "backward offsets": ({**WHOLE, "b": {**B, "data_offsets": [32, 24]}}, "tensor 'b' has -8 bytes, expected 8"),
    "another dtype's bytes": ({**WHOLE, "b": {**B, "dtype": "F32"}}, "tensor 'b' has 8 bytes, expected 16"),
    "beyond the end": ({**WHOLE, "b": {**B, "data_offsets": [32, 40]}}, "tensor 'b' begins at byte"),
    "overlap": ({**WHOLE, "b": {**B, "data_offsets": [22, 30]}}, "tensor 'b' begins at byte"),
    "the same place": ({**WHOLE, "c": B}, "tensor 'c' begins at byte"),
    "a hole": ({"a": A, "b": {**B, "data_offsets": [26, 34]}}, "tensor 'b' begins at byte"),
    "a hole at the start": ({"b": B}, "tensor 'b' begins at byte"),
    "bytes left over": ({"a": A}, "has bytes after its last tensor"),
    "short": ({**WHOLE, "c": {**B, "data_offsets": [32, 40]}}, "is cut short: has"),
    "a name of any length": ({"x" * 1000: 3}, "x…"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_header_is_refused_with_the_tensor_and_what_was_expected(damage: str, tmp_path: Path) -> None:
    tensors, sentence = DAMAGES[damage]

    assert sentence in refusal(described(tmp_path, tensors))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the header has 'a' twice, expected each name once"),
        (b'{"a": {"dtype": "I8", "dtype": "U8"}}', "the header has 'dtype' twice"),
        (b'{"__metadata__": {"k": "v", "k": "w"}}', "the header has 'k' twice"),
        (b"[]", "the header begins with b'[', expected a JSON object"),
        (b"", "the header begins with b'', expected a JSON object"),
        (b'{"a": NaN}', "the header cannot be read, expected a JSON object: ValueError"),
        (b'{"a": ' + b"9" * 5000 + b"}", "the header cannot be read"),
        (b'{"a": ' + b"[" * 200_000, "the header cannot be read, expected a JSON object: RecursionError"),
        (b'{"a": "\xff"}', "the header cannot be read, expected a JSON object: UnicodeDecodeError"),
        (b'{"a": ', "the header cannot be read, expected a JSON object: JSONDecodeError"),
    ],
)
def test_a_header_that_is_no_object_of_its_own_names_is_refused(text: bytes, sentence: str, tmp_path: Path) -> None:
    assert sentence in refusal(written(tmp_path, text))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_a_header_of_endless_bytes_is_not_read(length: int, tmp_path: Path) -> None:
    sentence = refusal(written(tmp_path, b"{}", length=length))

    assert f"declares a header of {length} bytes, expected at most 100000000" in sentence


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    assert "is cut short: has 42 bytes" in refusal(written(tmp_path, b"{}", length=100_000_000))


def test_a_missing_file_is_refused_with_the_way_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()

    assert "fetch it with python -m builder bake" in refusal(tmp_path / "vae" / "weights.safetensors")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae" / "weights.safetensors").mkdir(parents=True)

    assert "cannot be read: Is a directory" in refusal(tmp_path / "vae" / "weights.safetensors")


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    os.mkfifo(tmp_path / "vae" / "weights.safetensors")

    assert "it is not a regular file" in refusal(tmp_path / "vae" / "weights.safetensors")


@on_disk
@given(data=st.data())
def test_a_file_truncated_anywhere_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    content = described(tmp_path, WHOLE).read_bytes()
    kept = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path / "vae" / "weights.safetensors"
    path.write_bytes(content[:kept])

    refusal(path)


sizes = st.one_of(st.integers(-2, 10), st.sampled_from([2**31, 2**62, 2**63, 2**64]))
places = st.one_of(st.integers(-1, 40), st.sampled_from([2**62, 2**63 - 1, 2**63]))
dtypes = st.sampled_from([*header.ITEM_BYTES, "F4", "F", ""])
tensors = st.fixed_dictionaries(
    {
        "dtype": dtypes,
        "shape": st.lists(sizes, max_size=3),
        "data_offsets": st.lists(places, min_size=2, max_size=2),
    }
)


@on_disk
@given(tensors=st.dictionaries(st.sampled_from("abc"), tensors, max_size=3), data=st.integers(0, 40))
def test_whatever_a_header_declares_only_what_safetensors_takes_is_taken(
    tensors: Described, data: int, tmp_path: Path
) -> None:
    path = described(tmp_path, tensors, data)

    if accepts(path):
        with safe_open(path, framework="numpy") as file:
            assert set(file.keys()) == set(tensors)


@st.composite
def whole(draw: st.DrawFn) -> tuple[Described, int]:
    """Tensors that lie one after the other, and their bytes."""
    tensors, end = {}, 0
    for name in draw(st.lists(st.text(max_size=5), unique=True, max_size=5)):
        dtype, shape = draw(st.sampled_from(list(header.ITEM_BYTES))), draw(st.lists(st.integers(0, 3), max_size=3))
        count = header.ITEM_BYTES[dtype]
        for size in shape:
            count *= size
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    return tensors, end


@on_disk
@given(file=whole())
def test_every_whole_file_is_taken(file: tuple[Described, int], tmp_path: Path) -> None:
    tensors, data = file

    assert set(header.read(described(tmp_path, tensors, data)).tensors) == set(tensors)


@on_disk
@given(flips=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_make_a_file_that_safetensors_refuses(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    path = described(tmp_path, WHOLE)
    content = bytearray(path.read_bytes())
    for at, value in flips:
        content[at % len(content)] = value
    path.write_bytes(content)

    if accepts(path):
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            pytest.fail(str(error))
