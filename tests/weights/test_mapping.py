import errno
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_edit.errors import ModelUnavailable
from qwen_edit.weights import header
from qwen_edit.weights.mapping import CAN_MAP, Mapped, _populate
from qwen_edit.weights.placement import WINDOW, Read
from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import sink_for

CPU = torch.device("cpu")
PAGE = os.sysconf("SC_PAGESIZE")

pytestmark = pytest.mark.skipif(not CAN_MAP, reason="this system cannot read a map without touching it")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({"noise": torch.rand(20 * PAGE), "whole": torch.arange(7)}, path)
    return path


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(f"{path}\n")


def test_the_cpu_maps_its_files() -> None:
    assert isinstance(sink_for(CPU, 1, PAGE), Mapped)


def test_tensors_are_the_file_itself_and_let_go_of_it_at_their_end(path: Path) -> None:
    with Weights([path], CPU) as weights:
        tensors = weights.tensors(path)

    assert maps_of(path) == 1
    assert torch.equal(tensors["noise"], load_file(path)["noise"])
    tensors.clear()
    assert maps_of(path) == 0


def test_what_is_written_to_a_tensor_stays_in_this_process(path: Path) -> None:
    before = path.read_bytes()

    with Weights([path], CPU) as weights:
        weights.tensors(path)["noise"].zero_()

    assert path.read_bytes() == before


def test_a_file_that_is_replaced_or_removed_afterwards_keeps_its_tensors(path: Path) -> None:
    expected = load_file(path)["noise"].clone()
    with Weights([path], CPU) as weights:
        noise = weights.tensors(path)["noise"]
    path.with_suffix(".new").write_bytes(b"other")
    path.with_suffix(".new").replace(path)
    path.unlink()

    assert torch.equal(noise, expected)


def test_a_tensor_that_begins_where_none_of_its_dtype_may_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    text = (
        b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"b":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}}'
    )
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"abc" + struct.pack("<2f", 1.5, -2.0))

    with Weights([path], CPU) as weights:
        tensors = weights.tensors(path)

    assert bytes(tensors["a"].tolist()) == b"abc"
    assert tensors["b"].tolist() == [1.5, -2.0]


def test_a_page_behind_the_end_of_a_file_is_an_error_and_not_the_end_of_the_process(path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        _, buffer = Mapped().land(file.fileno(), header.read(path).tensors, PAGE)
        os.truncate(path, PAGE)

        with pytest.raises(OSError, match="Bad address") as error:
            _populate(buffer.data_ptr(), size)

        assert error.value.errno == errno.EFAULT
        assert Mapped().read(file.fileno(), Read(0, size, ()), buffer) == PAGE


def test_a_file_that_is_cut_short_before_it_is_mapped_is_refused(path: Path) -> None:
    with path.open("rb") as file:
        tensors = header.read(path).tensors
        os.truncate(path, PAGE)

        with pytest.raises(OSError, match="it ends before byte"):
            Mapped().land(file.fileno(), tensors, PAGE)


def test_a_file_that_is_cut_short_between_two_groups_is_refused_with_its_name(path: Path) -> None:
    with Weights([path], CPU, portions={path: [["whole"]] * (WINDOW + 2)}) as weights:
        portions = weights.portions(path)
        next(portions)
        os.truncate(path, PAGE)

        with pytest.raises(ModelUnavailable, match=r"weights\.safetensors: "):
            next(portions)
