import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from queue import SimpleQueue

import pytest

from qwen_edit.store.files import open_file
from qwen_edit.weights.disk import Identity, Prefetch, fill


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    return path


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (10, 0, 20), (0,), ()])
def test_views_are_filled_in_turn(path: Path, sizes: tuple[int, ...]) -> None:
    buffers = [bytearray(size) for size in sizes]

    with open_file(path) as file:
        count = fill(file.fileno(), [memoryview(buffer) for buffer in buffers], 0)

    assert count == sum(sizes)
    assert b"".join(buffers) == bytes(range(sum(sizes)))


def test_the_end_of_the_file_ends_the_filling(path: Path) -> None:
    first, second = bytearray(30), bytearray(30)

    with open_file(path) as file:
        assert fill(file.fileno(), [memoryview(first), memoryview(second)], 60) == 40

    assert first + second == bytes(range(60, 100)) + bytes(20)


def test_a_read_that_the_kernel_cuts_short_goes_on_where_it_stopped() -> None:
    part = memoryview(bytearray(64 << 20))
    tail = bytearray(3)
    views = [*[part] * 32, memoryview(tail)]
    size = sum(map(len, views))
    assert size > 1 << 31  # what one call reads at most
    descriptor = os.memfd_create("sparse")
    try:
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, b"end", size - 3)

        assert fill(descriptor, views, 0) == size
        assert tail == b"end"
    finally:
        os.close(descriptor)


def test_what_is_written_or_put_in_its_place_has_another_identity(path: Path) -> None:
    before = Identity.of(path)
    assert Identity.of(path) == before

    os.utime(path, ns=(0, 1))
    written = Identity.of(path)
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(0, 1))
    other.replace(path)

    assert before != written != Identity.of(path)


def resident(path: Path) -> int:
    """Pages of the file that are in the page cache, as the kernel tells a fresh mapping of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        vector = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), vector) == 0
        del start
    return sum(page & 1 for page in vector)


def not_cached(path: Path) -> Path:
    """A file of some steps and a bit."""
    with path.open("wb") as file:
        file.write(os.urandom((3 << 20) + 5))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path):
        pytest.skip("this file system keeps its files in memory")
    return path


def assert_cached(path: Path) -> None:
    pages = (3 << 20) // mmap.PAGESIZE + 1
    give_up = time.monotonic() + 60
    while resident(path) < pages and time.monotonic() < give_up:
        time.sleep(0.01)  # the disk is still at work
    assert resident(path) == pages


def test_files_are_read_into_the_page_cache_to_their_end(tmp_path: Path) -> None:
    paths = [not_cached(tmp_path / "one"), not_cached(tmp_path / "two")]

    with Prefetch(paths):
        assert_cached(paths[0])
        assert_cached(paths[1])


def test_a_file_that_cannot_be_read_does_not_keep_the_next_from_it(tmp_path: Path) -> None:
    path = not_cached(tmp_path / "file")

    with Prefetch([tmp_path / "gone", tmp_path, path], gently=True):
        assert_cached(path)


def test_a_prefetch_can_be_stopped_and_leaves_no_thread(path: Path) -> None:
    Prefetch(repeat(path)).close()

    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_only_a_gentle_prefetch_gives_way(path: Path) -> None:
    def priority() -> Iterator[Path]:
        priorities.put(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        yield path

    priorities: SimpleQueue[int] = SimpleQueue()
    here = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for gently, expected in ((False, here), (True, 19)):
        with Prefetch(priority(), gently=gently):
            assert priorities.get(timeout=60) == expected

    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == here
