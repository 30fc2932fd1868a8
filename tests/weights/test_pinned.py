"""Memory that is pinned, and what a child process gets of it. Pinned here by the kernel's io_uring, without a GPU."""

import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwen_edit.weights.advice import Advice, advise
from qwen_edit.weights.pinned import keep_from_children, pin
from tests.support.places import ROOT

MEGABYTES = 128

CHILD = f"""
import ctypes, os, sys, torch
from qwen_edit.weights.advice import Advice, advise
from qwen_edit.weights.pinned import keep_from_children

memory = torch.ones({MEGABYTES} << 20, dtype=torch.uint8)
libc = ctypes.CDLL(None, use_errno=True)
SETUP, REGISTER, BUFFERS = 425, 427, 0
ring = libc.syscall(SETUP, 1, ctypes.create_string_buffer(120))
vector = (ctypes.c_uint64 * 2)(memory.data_ptr(), memory.nbytes)
if ring < 0 or libc.syscall(REGISTER, ring, BUFFERS, vector, 1):
    sys.exit(77)
if sys.argv[1] == "kept":
    keep_from_children(memory)
reading, writing = os.pipe()
child = os.fork()
if not child:
    rows = dict(line.split(":") for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    os.write(writing, rows["Private_Dirty"].split()[0].encode())
    os._exit(0)
os.waitpid(child, 0)
print(int(os.read(reading, 64)) >> 10)
"""


def flags(memory: Tensor) -> set[str]:
    """What `/proc/self/smaps` says of the memory in the middle of a tensor."""
    middle = memory.data_ptr() + memory.nbytes // 2
    for area in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        first, behind = (int(one, 16) for one in area.split(" ")[0].split("-"))
        if first <= middle < behind:
            return set(area.rpartition("VmFlags:")[2].split())
    raise AssertionError("the tensor is in no area of memory")


class Registering:
    """In place of CUDA's runtime: takes all memory, or none."""

    def __init__(self, error: int = 0) -> None:
        self.registered: dict[int, int] = {}
        self._error = error

    def cudaHostRegister(self, pointer: int, size: int, _flags: int) -> int:  # noqa: N802 - CUDA's name
        if not self._error:
            self.registered[pointer] = size
        return self._error

    def cudaHostUnregister(self, pointer: int) -> int:  # noqa: N802 - CUDA's name
        del self.registered[pointer]
        return 0


def fresh() -> Tensor:
    """Memory of which no other test has said anything."""
    memory = torch.ones(64 << 20, dtype=torch.uint8)
    first = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(first, memory.nbytes - mmap.PAGESIZE, Advice.DOFORK)
    return memory


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Registering:
    runtime = Registering()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


def test_a_child_gets_none_of_pinned_memory_until_it_is_unpinned(runtime: Registering) -> None:
    storage = fresh()  # which outlives the tensor that is pinned
    memory = storage[:]
    pin(memory)

    assert runtime.registered == {storage.data_ptr(): storage.nbytes}
    assert "dc" in flags(storage)
    del memory
    assert runtime.registered == {}
    assert "dc" not in flags(storage)


def test_memory_that_cannot_be_pinned_is_told_and_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Registering(error=2))
    memory = fresh()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "ones", lambda *_, **__: None)  # which asks CUDA for the error that it keeps
        pin(memory)

    assert "memory not pinned" in capsys.readouterr().out
    assert "dc" not in flags(memory)


@pytest.mark.parametrize("size", [0, 1, 100, mmap.PAGESIZE - 1, mmap.PAGESIZE, 3 * mmap.PAGESIZE + 17])
@pytest.mark.parametrize("offset", [0, 1, 64, mmap.PAGESIZE - 1])
def test_what_shares_a_page_with_it_is_left_to_children(size: int, offset: int) -> None:
    storage = fresh()
    start = -storage.data_ptr() % mmap.PAGESIZE + (16 << 20)  # a page's beginning in the middle
    keep_from_children(storage[start + offset : start + offset + size])

    inside = [
        page for page in range(5) if offset <= page * mmap.PAGESIZE and (page + 1) * mmap.PAGESIZE <= offset + size
    ]
    kept = [page for page in range(5) if "dc" in flags(storage[start + page * mmap.PAGESIZE :][: mmap.PAGESIZE])]
    assert kept == inside


@pytest.mark.parametrize(
    ("way", "least", "most"), [("as it is", MEGABYTES, 10 * MEGABYTES), ("kept", 0, MEGABYTES // 2)]
)
def test_a_fork_copies_what_is_pinned_unless_it_is_kept_from_children(way: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, way], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("the kernel pins no memory for io_uring")
    assert done.returncode == 0, done.stderr
    assert least <= int(done.stdout) <= most
