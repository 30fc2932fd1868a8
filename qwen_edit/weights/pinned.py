"""Memory of the host that the GPU reads by itself."""

import mmap
import weakref
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from qwen_edit.log import log
from qwen_edit.weights.advice import Advice, advise


def pin(memory: Tensor) -> None:
    """Let the GPU read memory of the host by itself, as it lies: PyTorch's own pinned memory comes in powers of two.

    Where CUDA refuses, the log says so; copies from this memory are slower then, and right.

    Args:
        memory: on the CPU. It is pinned until this tensor is gone.
    """
    if not memory.nbytes:
        return
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    pointer = memory.data_ptr()
    if error := int(cudart.cudaHostRegister(pointer, memory.nbytes, 0)):
        log("memory not pinned", "warning", bytes=memory.nbytes, error=error)
        with suppress(RuntimeError):  # CUDA keeps the error for whoever launches a kernel next
            torch.ones(1, device="cuda")
        return
    keep_from_children(memory)
    weakref.finalize(memory, _unpin, cudart, pointer, memory.nbytes).atexit = False


def keep_from_children(memory: Tensor) -> None:
    """Let a child process have none of it.

    A fork shares pages with the child until one of the two writes. Pinned pages it has to copy at once: the device goes
    on writing to the parent's. That is every byte of the weights that wait, for as long as the child lives.
    """
    _advise(memory.data_ptr(), memory.nbytes, Advice.DONTFORK)


def _unpin(cudart: Any, pointer: int, size: int) -> None:  # noqa: ANN401 - PyTorch's binding has no types
    cudart.cudaHostUnregister(pointer)
    _advise(pointer, size, Advice.DOFORK)  # the allocator may hand these pages to somebody else


def _advise(pointer: int, size: int, advice: Advice) -> None:
    """Advise the pages that lie wholly in it: what shares a page with it at either end is not ours."""
    first = -(-pointer // mmap.PAGESIZE) * mmap.PAGESIZE
    behind = (pointer + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= behind:
        return
    with suppress(OSError):  # a sandbox without such advice copies them
        advise(first, behind - first, advice)
