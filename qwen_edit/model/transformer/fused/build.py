"""Compile the kernels without a GPU, into the cache in which a worker's Triton looks for them.

`python -m qwen_edit.model.transformer.fused.build --folder FOLDER`; the worker then runs with TRITON_CACHE_DIR=FOLDER.

Triton names a kernel in its cache by the kernel's source, the types and the alignment of its arguments, the constants,
the options, the card's compute capability, and the installed compiler: by nothing of the device itself. So the same
launches as in an edit, with a driver in the place of CUDA's that only says the capability, leave what an edit will look
for. The same holds for the launchers, which Triton has a C compiler build: it names them by their source, and by what
Python's `platform.architecture()` says, which is less where the command `file` is not installed. With all of them in
the cache a worker needs no compiler. The cache remembers whole paths, so the folder cannot move.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as cuda
from triton.runtime import driver

from qwen_edit.machine.backend import FIRST_WITH_FP8
from qwen_edit.model.transformer.fused import launch, triton_kernels
from qwen_edit.model.transformer.fused.choose import samples
from qwen_edit.svdq.fp8 import DTYPE

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))
"""Of the cards in `docs/operations.md`, and 10.3 of the B300. Another card's worker compiles, or does without."""

HEADS, CHANNELS = 24, 128
"""Qwen-Image's attention; the width of its residual stream is their product."""


class NoCard:
    """What Triton asks of a driver as it compiles, answered for a card that is not there."""

    def __init__(self, capability: tuple[int, int]) -> None:
        major, minor = capability
        self._number = 10 * major + minor

    def get_current_target(self) -> GPUTarget:
        """The kind of GPU, as CUDA's driver says it."""
        return GPUTarget("cuda", self._number, 32)

    def get_current_device(self) -> int:
        """Another index for each capability, because a process keeps its kernels by the device's index."""
        return self._number

    def get_current_stream(self, _device: int) -> int:
        """The default one."""
        return 0


class Built(NamedTuple):
    """A compiled kernel, with the capability that it is for."""

    capability: tuple[int, int]
    kernel: Any


def build(capabilities: Sequence[tuple[int, int]], dtype: torch.dtype = torch.bfloat16) -> Iterator[Built]:
    """Compile each kernel at the real sizes for each capability, into Triton's cache. Triton has no card afterwards."""
    for capability in capabilities:
        driver.set_active(NoCard(capability))
        for one in launches(dtype, HEADS, CHANNELS, HEADS * CHANNELS):
            if one.kernel is not triton_kernels.quantize_rows or capability >= FIRST_WITH_FP8:
                yield Built(capability, one.compile())


def launches(dtype: torch.dtype, heads: int, channels: int, width: int) -> Iterator[launch.Launch]:
    """What `warm` launches, on the CPU's memory."""
    for name, given in samples(torch.device("cpu"), dtype, heads, channels, width):
        yield launch.LAUNCHES[name](*given, *_results(name, given[0]))


def _results(name: str, like: Tensor) -> tuple[Tensor, ...]:
    """What a function makes for its result, given its first argument; the one for queries and keys is given its own."""
    if name == "quantize_rows":
        return torch.empty(like.shape, dtype=DTYPE), torch.empty(len(like), 1)
    return () if name == "norm_rotate" else (torch.empty_like(like),)


def build_launchers(built: Sequence[Built]) -> None:
    """Have the C compiler build what starts the kernels, and what Triton asks CUDA through, into the cache.

    They are linked against an empty library in the place of CUDA's, which a machine without a GPU does not have, unless
    TRITON_LIBCUDA_PATH names the folder of one: releases after 3.6 want the same value for the worker. The environment
    keeps what that takes.

    Raises:
        CalledProcessError: the C compiler failed.
        RuntimeError: there is none.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise RuntimeError("there is no C compiler, which Triton's launchers need; install gcc, or set CC")
    with tempfile.TemporaryDirectory() as folder:
        if "TRITON_LIBCUDA_PATH" not in os.environ:
            library = ["-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", os.devnull, "-o", f"{folder}/libcuda.so.1"]
            subprocess.run([compiler, *library], check=True)  # noqa: S603 - of the machine's own setup
            os.environ["TRITON_LIBCUDA_PATH"] = folder
        os.environ["CC"] = str(_linking_all(compiler, Path(folder)))
        with suppress(ImportError):  # it is in the cache then, and cannot be loaded without CUDA
            cuda.CudaUtils()
        # A launcher depends on the types of a kernel's arguments alone. Releases after 3.6 have one for all kernels,
        # which is in the above.
        with_launcher = {str(one.kernel.src.signature): one.kernel for one in built if hasattr(cuda, "make_launcher")}
        for kernel in with_launcher.values():
            with suppress(ImportError):
                cuda.CudaLauncher(kernel.src, kernel.metadata)


def _linking_all(compiler: str, folder: Path) -> Path:
    """The compiler as a command that also has a library loaded that nothing is found in: the real one has it all."""
    command = folder / "cc"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} -Wl,--no-as-needed "$@"\n')
    command.chmod(0o700)
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill a folder, and print a line for each kernel."""
    parser = argparse.ArgumentParser(prog="python -m qwen_edit.model.transformer.fused.build", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the worker's TRITON_CACHE_DIR")
    parser.add_argument("--capabilities", type=_capabilities, default=CAPABILITIES, help="8.0,9.0: those alone")
    options = parser.parse_args(arguments)
    os.environ["TRITON_CACHE_DIR"] = str(options.folder.absolute())
    built = []
    for one in build(options.capabilities):
        built.append(one)
        print(f"{'.'.join(map(str, one.capability))} {one.kernel.name}: {len(one.kernel.asm['cubin'])} bytes")
    build_launchers(built)


def _capabilities(text: str) -> list[tuple[int, int]]:
    """`8.0,9.0` as pairs of numbers."""
    if not re.fullmatch(r"[0-9]{1,2}\.[0-9](,[0-9]{1,2}\.[0-9])*", text):
        raise argparse.ArgumentTypeError(f"it is {text!r}, expected capabilities with commas between, like 8.0,9.0")
    pairs = [one.split(".") for one in text.split(",")]
    return [(int(major), int(minor)) for major, minor in pairs]


if __name__ == "__main__":
    main(sys.argv[1:])
