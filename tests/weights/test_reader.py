import errno
import gc
import json
import math
import os
import struct
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_edit.errors import Cancelled, ModelUnavailable
from qwen_edit.weights.file import DTYPES, Arrived
from qwen_edit.weights.header import ITEM_BYTES
from qwen_edit.weights.mapping import CAN_MAP, Mapped
from qwen_edit.weights.placement import ALIGNMENT, WINDOW, Read
from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import HostMemory, Sink
from tests.support.reading import read_folder

CPU = torch.device("cpu")
BLOCK = 1000

maps = pytest.mark.skipif(not CAN_MAP, reason="this system cannot read a map without touching it")

on_disk = settings(
    # Each example writes its own file over the last one, as fast as the disk allows.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "text_encoder"
    folder.mkdir()
    save_file({"a": torch.tensor([1.0, 2.0], dtype=torch.bfloat16)}, folder / "part-1.safetensors")
    save_file({"b": torch.tensor([3.0], dtype=torch.float16)}, folder / "part-2.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten blocks."""
    path = tmp_path / "vae" / "weights.safetensors"
    path.parent.mkdir()
    save_file({"noise": torch.rand(BLOCK // 4 * 10)}, path)
    return path


def written(path: Path, tensors: list[tuple[str, list[int]]]) -> Path:
    """A file of random bytes with these dtypes and shapes in this order, named by their number."""
    header: dict[str, Any] = {}
    end = 0
    for number, (dtype, shape) in enumerate(tensors):
        start, end = end, end + ITEM_BYTES[dtype] * math.prod(shape)
        header[str(number)] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(byte & 1 for byte in os.urandom(end)))
    return path


def as_bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert as_bytes(found[name]) == as_bytes(tensor)


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("weights")]


class Acting:
    """Does something to the world after the first block."""

    def __init__(self, after_first: Callable[[], object] = lambda: None) -> None:
        self._after_first = after_first
        self._lock = threading.Lock()
        self._first = True

    def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
        with self._lock:
            count: int = super().read(descriptor, span, buffer)  # type: ignore[misc]
            if self._first:
                self._first = False
                self._after_first()
            return count


class Memory(bytearray):
    """Memory whose end can be seen."""


class Watched(Acting, HostMemory):
    """Knows which of its buffers are still there."""

    def __init__(self, after_first: Callable[[], object] = lambda: None) -> None:
        super().__init__(after_first)
        self._buffers: list[weakref.ref[Memory]] = []

    @property
    def alive(self) -> int:
        return sum(buffer() is not None for buffer in self._buffers)

    def allocate(self, size: int) -> Tensor:
        memory = Memory(size)
        self._buffers.append(weakref.ref(memory))
        return torch.frombuffer(memory, dtype=torch.uint8)


class WatchedMap(Acting, Mapped):
    """Knows how many of its maps are still there."""

    def __init__(self, after_first: Callable[[], object] = lambda: None) -> None:
        super().__init__(after_first)
        self._inodes: set[int] = set()

    @property
    def alive(self) -> int:
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        return sum(int(inode) in self._inodes for _, _, _, _, inode, *_ in maps)

    def land(self, descriptor: int, *what: Any) -> Any:
        self._inodes.add(os.fstat(descriptor).st_ino)
        return super().land(descriptor, *what)


watched = pytest.mark.parametrize("sink_class", [Watched, pytest.param(WatchedMap, marks=maps)])


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_each_dtype_is_what_safetensors_makes_of_it(dtype: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", [(dtype, [5, 3])])

    with Weights([path], CPU) as weights:
        found = weights.tensors(path)

    assert found["0"].dtype == DTYPES[dtype]
    assert_same(found, load_file(path))


@on_disk
@given(
    tensors=st.lists(st.tuples(st.sampled_from(list(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3)), max_size=8),
    bytes_a_read=st.integers(1, 500),
    readers=st.integers(1, 4),
)
@pytest.mark.parametrize("sink_class", [HostMemory, pytest.param(Mapped, marks=maps)])
def test_any_file_is_read_as_safetensors_reads_it(
    sink_class: type[Sink], tensors: list[tuple[str, list[int]]], bytes_a_read: int, readers: int, tmp_path: Path
) -> None:
    path = written(tmp_path / "a.safetensors", tensors)

    with Weights([path], CPU, readers=readers, bytes_a_read=bytes_a_read, sink=sink_class()) as weights:
        found = weights.tensors(path)

    assert_same(found, load_file(path))
    assert list(found) == [str(number) for number in range(len(tensors))]


def test_what_is_copied_has_one_buffer_and_begins_where_vectors_do(blocks: Path) -> None:
    with Weights([blocks], CPU, sink=HostMemory()) as weights:
        found = weights.tensors(blocks)

    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values() if tensor.numel()}) <= 1
    assert not [tensor for tensor in found.values() if tensor.storage_offset() * tensor.itemsize % ALIGNMENT]


def test_many_files_are_each_handed_out_whole_in_any_order(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{number}.safetensors", [("I32", [number, 100])]) for number in range(20)]

    with Weights(paths, CPU, bytes_a_read=BLOCK) as weights:
        for path in reversed(paths):
            assert_same(weights.tensors(path), load_file(path))


def test_files_are_read_in_the_order_in_which_they_are_needed(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{number}.safetensors", [("U8", [BLOCK * 3])]) for number in range(3)]
    order: list[str] = []

    class Noting(HostMemory):
        def read(self, descriptor: int, span: Read, buffer: Tensor) -> int:
            order.append(Path(f"/proc/self/fd/{descriptor}").readlink().stem)
            return super().read(descriptor, span, buffer)

    with Weights(paths, CPU, readers=1, bytes_a_read=BLOCK, sink=Noting()) as weights:
        weights.tensors(paths[2])

    assert order == ["0"] * 3 + ["1"] * 3 + ["2"] * 3


def test_what_was_handed_out_is_counted(path: Path, folder: Path) -> None:
    other = folder / "part-1.safetensors"

    with Weights([path, other], CPU) as weights:
        assert weights.stats.bytes == 0
        weights.tensors(path)
        assert weights.stats.bytes == path.stat().st_size
        seconds = weights.stats.seconds
        weights.tensors(other)

    assert weights.stats.bytes == path.stat().st_size + other.stat().st_size
    assert weights.stats.seconds >= seconds > 0


@watched
def test_a_file_is_handed_out_once_and_its_memory_goes_with_its_tensors(sink_class: Any, path: Path) -> None:
    sink = sink_class()

    with Weights([path], CPU, bytes_a_read=BLOCK, sink=sink) as weights:
        tensors = weights.tensors(path)
        with pytest.raises(KeyError):
            weights.tensors(path)
        assert sink.alive == 1
        tensors.clear()
        assert sink.alive == 0


def test_tensors_outlive_the_reading(path: Path) -> None:
    with Weights([path], CPU) as weights:
        found = weights.tensors(path)

    assert_same(found, load_file(path))
    assert not reading_threads()


def test_a_damaged_header_is_refused_before_anything_is_read(path: Path, folder: Path) -> None:
    damaged = folder / "part-2.safetensors"
    damaged.write_bytes(struct.pack("<Q", 2**63))

    with pytest.raises(ModelUnavailable, match=r"text_encoder/part-2\.safetensors: declares a header of 9223372036854"):
        Weights([path, damaged], CPU)

    assert not reading_threads()


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, BLOCK * 5), f"was cut short while it was read: .* byte {BLOCK * 5},"),
    "emptied": (lambda path: os.truncate(path, 0), "was cut short while it was read"),
    "made longer": (lambda path: os.truncate(path, BLOCK * 50), "was changed or replaced while it was read"),
    "written to": (lambda path: os.utime(path, ns=(0, 0)), "was changed or replaced while it was read"),
    "replaced": (
        lambda path: path.with_suffix(".new").write_bytes(path.read_bytes()) and path.with_suffix(".new").replace(path),
        "was changed or replaced while it was read",
    ),
    "removed": (lambda path: path.unlink(), "No such file or directory"),
}


@watched
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused(sink_class: Any, change: str, path: Path) -> None:
    act, sentence = CHANGES[change]
    sink = sink_class(lambda: act(path))

    with (
        Weights([path], CPU, readers=1, bytes_a_read=BLOCK, sink=sink) as weights,
        pytest.raises(ModelUnavailable, match=rf"vae/weights\.safetensors: {sentence}"),
    ):
        weights.tensors(path)

    assert not reading_threads()


@watched
@on_disk
@given(kept=st.integers(0, BLOCK * 10))
def test_a_file_truncated_anywhere_while_it_is_read_is_refused(sink_class: Any, kept: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", [("U8", [BLOCK * 10])])
    sink = sink_class(lambda: os.truncate(path, kept))

    with Weights([path], CPU, readers=2, bytes_a_read=BLOCK, sink=sink) as weights, pytest.raises(ModelUnavailable):
        weights.tensors(path)


@watched
def test_an_error_of_the_disk_is_raised_with_the_name_of_its_file_and_spares_the_others(
    sink_class: Any, path: Path, folder: Path
) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    other = folder / "part-1.safetensors"

    with Weights([path, other], CPU, readers=1, bytes_a_read=BLOCK, sink=sink_class(fail)) as weights:
        with pytest.raises(ModelUnavailable, match=r"vae/weights\.safetensors: cannot be read: Input/output error"):
            weights.tensors(path)
        assert_same(weights.tensors(other), load_file(other))


@pytest.fixture
def without_collector() -> Any:
    """Memory that only the cycle collector would find counts as kept."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@watched
@pytest.mark.usefixtures("without_collector")
def test_a_failure_leaves_no_thread_and_no_memory(sink_class: Any, path: Path, folder: Path) -> None:
    sink = sink_class(lambda: os.truncate(path, 500))

    failed = False
    try:
        with Weights([path, folder / "part-1.safetensors"], CPU, readers=2, bytes_a_read=BLOCK, sink=sink) as weights:
            weights._pool.shutdown()  # so that each block has failed
            weights.tensors(path)
    except ModelUnavailable:  # pytest.raises would keep the error, and with it the frames that hold the memory
        failed = True
    del weights

    assert failed
    assert not reading_threads()
    assert sink.alive == 0


@watched
@pytest.mark.usefixtures("without_collector")
def test_closing_in_the_middle_ends_the_wait_and_leaves_no_thread_and_no_memory(
    sink_class: Any, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait()

    sink = sink_class(hold)
    weights = Weights([path, folder / "part-1.safetensors"], CPU, readers=2, bytes_a_read=BLOCK, sink=sink)
    begun.wait()
    closing = threading.Thread(target=weights.close)
    take, shutdown = weights._files[path].take, weights._pool.shutdown

    def close_and_take() -> Arrived:
        closing.start()
        return take()

    def shut_down_and_go_on(**options: bool) -> None:
        shutdown(wait=False, **options)
        go_on.set()
        shutdown(**options)

    monkeypatch.setattr(weights._files[path], "take", close_and_take)
    monkeypatch.setattr(weights._pool, "shutdown", shut_down_and_go_on)
    with pytest.raises(Cancelled, match="the load was cancelled"):
        weights.tensors(path)
    closing.join()
    del weights

    assert not reading_threads()
    assert sink.alive == 0


def test_closing_twice_is_closing_once(path: Path) -> None:
    weights = Weights([path], CPU)
    weights.close()
    weights.close()

    with pytest.raises(KeyError):
        weights.tensors(path)


def test_no_file_stays_open(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))

    with Weights([path], CPU) as weights:
        weights.tensors(path)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_shards_of_an_index_are_read_together(folder: Path) -> None:
    tensors = read_folder(folder, CPU, torch.float32)

    assert tensors["a"].tolist() == [1.0, 2.0]
    assert tensors["b"].tolist() == [3]


def test_tensors_take_the_asked_dtype(folder: Path) -> None:
    tensors = read_folder(folder, CPU, torch.float32)

    assert (tensors["a"].dtype, tensors["b"].dtype) == (torch.float32, torch.float32)


def test_integers_are_no_weights(folder: Path) -> None:
    save_file({"b": torch.tensor([3], dtype=torch.int64)}, folder / "part-2.safetensors")

    with pytest.raises(ModelUnavailable, match="tensor 'b' is int64, expected floating point"):
        read_folder(folder, CPU, torch.float32)


def test_a_file_that_the_index_does_not_name_is_left_alone(folder: Path) -> None:
    save_file({"old": torch.zeros(1)}, folder / "stale.safetensors")

    assert set(read_folder(folder, CPU, torch.float32)) == {"a", "b"}


def test_without_an_index_the_only_file_is_read(tmp_path: Path) -> None:
    save_file({"c": torch.zeros(2)}, tmp_path / "diffusion_pytorch_model.safetensors")

    assert set(read_folder(tmp_path, CPU, torch.float32)) == {"c"}


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "part-2.safetensors").unlink()

    with pytest.raises(ModelUnavailable, match=r"text_encoder/part-2\.safetensors: No such file .*builder bake"):
        read_folder(folder, CPU, torch.float32)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "part-1.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(ModelUnavailable, match=r"text_encoder/part-1\.safetensors: is cut short"):
        read_folder(folder, CPU, torch.float32)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 7}', "{"])
def test_an_index_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)

    with pytest.raises(ModelUnavailable, match=r"text_encoder/model\.safetensors\.index\.json is not an index"):
        read_folder(folder, CPU, torch.float32)


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="python -m builder bake"):
        read_folder(tmp_path, CPU, torch.float32)


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """Six tensors of ten blocks each, of two dtypes as a checkpoint has them: those of one dtype lie together."""
    path = tmp_path / "blocks.safetensors"
    return written(path, [("F32", [BLOCK // 4 * 10])] * 3 + [("U8", [BLOCK * 10])] * 3)


GROUPS = [["4", "1"], ["3", "0"], ["5"]]


def test_a_file_is_handed_out_in_groups_in_the_order_in_which_they_are_asked_for(blocks: Path) -> None:
    everything = load_file(blocks)

    with Weights([blocks], CPU, portions={blocks: GROUPS}, bytes_a_read=BLOCK) as weights:
        for names, tensors in zip(GROUPS, weights.portions(blocks), strict=True):
            assert_same(tensors, {name: everything[name] for name in names})

    assert weights.stats.bytes == blocks.stat().st_size - everything["2"].nbytes


def test_no_more_groups_are_in_memory_than_the_window_and_what_the_caller_keeps(blocks: Path) -> None:
    sink = Watched()
    portions = [[str(number)] for number in range(6)]
    alive, kept = [], []

    with Weights([blocks], CPU, portions={blocks: portions}, bytes_a_read=BLOCK, sink=sink) as weights:
        for tensors in weights.portions(blocks):
            if "1" in tensors:
                kept.append(tensors["1"])
            alive.append(sink.alive - len(kept) + ("1" in tensors))

    assert max(alive) == WINDOW
    assert sink.alive == 1
    assert_same({"1": kept[0]}, {"1": load_file(blocks)["1"]})


def test_tensors_that_are_not_wanted_are_not_read(blocks: Path) -> None:
    with Weights([blocks], CPU, wanted=lambda name: name not in ("1", "2")) as weights:
        tensors = weights.tensors(blocks)

    everything = load_file(blocks)
    assert_same(tensors, {name: everything[name] for name in ("0", "3", "4", "5")})
    assert weights.stats.bytes == blocks.stat().st_size - everything["1"].nbytes - everything["2"].nbytes


def test_a_group_with_a_tensor_that_the_file_does_not_have_is_refused(blocks: Path) -> None:
    with pytest.raises(KeyError, match="other"):
        Weights([blocks], CPU, portions={blocks: [["other"]]})

    assert not reading_threads()


def test_closing_between_two_groups_ends_them(blocks: Path) -> None:
    weights = Weights([blocks], CPU, portions={blocks: GROUPS})
    portions = weights.portions(blocks)
    next(portions)
    weights.close()

    with pytest.raises(Cancelled, match="the load was cancelled"):
        next(portions)

    assert not reading_threads()
