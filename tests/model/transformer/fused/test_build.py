import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.places import ROOT

triton = pytest.importorskip("triton", reason="triton is not installed, which compiles for GPUs without one")

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0))

EDIT = """
import torch, triton
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime import driver
from qwen_edit.model.transformer.fused import launch
from qwen_edit.model.transformer.fused.build import NoCard

class Card(NoCard):
    utils, launcher_cls = CudaUtils(), CudaLauncher

def random(*shape):
    return torch.randn(shape, dtype=torch.bfloat16)

def compiled(*, src, cache_hit, **_):
    print("found" if cache_hit else "compiled", src.name, flush=True)

triton.knobs.compilation.listener = compiled
driver.set_active(Card((9, 0)))
for batch, tokens in ((1, 4096), (2, 1395), (1, 1)):
    stream = random(batch, tokens, 3072)
    heads = random(batch, tokens, 3, 24, 128)
    for x in (heads[:, :, 0], heads[:, :, 1].contiguous()):
        for out in (torch.empty_like(x), random(batch, 26 + tokens, 24, 128)[:, 26:]):
            launch.norm_rotate(x, random(128), 1e-6, torch.randn(tokens + 5, 64, 2)[5:], out)
    for scale, shift, gate in (random(1, 1, 9216).chunk(3, dim=-1), random(batch, 1, 9216).chunk(3, dim=-1)):
        launch.modulate(stream, scale, shift, 1e-6)
        launch.gated(stream, gate, stream)
    launch.quantize_rows(stream.flatten(0, 1))
    launch.quantize_rows(random(batch * tokens, 12288))
"""

LIBCUDA = """
#include <stdio.h>
int cuCtxGetCurrent(void **context) { *context = (void *)1; return 0; }
int cuModuleLoadData(void **module, const void *cubin) { *module = (void *)1; return 0; }
int cuModuleGetFunction(void **function) { *function = (void *)1; return 0; }
int cuDeviceGetAttribute(int *value) { *value = 100000; return 0; }
int cuFuncGetAttribute(int *value) { *value = 1024; return 0; }
int cuPointerGetAttribute(void **value, int attribute, void *pointer) { *value = pointer; return 0; }
int cuLaunchKernelEx(const unsigned *config) { return printf("launched %u\\n", *config) < 0 || fflush(stdout); }
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuCtxSetCurrent) NOTHING(cuCtxGetLimit) NOTHING(cuCtxSetLimit) NOTHING(cuDeviceGet) NOTHING(cuGetErrorString)
NOTHING(cuDevicePrimaryCtxRetain) NOTHING(cuFuncSetAttribute) NOTHING(cuFuncSetCacheConfig) NOTHING(cuModuleUnload)
NOTHING(cuCtxGetDevice) NOTHING(cuDriverGetVersion) NOTHING(cuStreamIsCapturing)
"""
"""Of CUDA's driver what Triton calls around a launch, which it only counts."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the build, with a library in the place of CUDA's for what is built."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed, which builds the launchers")
    folder = tmp_path_factory.mktemp("libcuda")
    (folder / "libcuda.c").write_text(LIBCUDA)
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", folder / "libcuda.c", "-o", folder / "libcuda.so.1"], check=True)
    later = tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder)} | ({"TRITON_LIBCUDA_PATH": str(folder)} if later else {})


@pytest.fixture(scope="module")
def folder(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build` fills for all cards, run as a command."""
    folder = tmp_path_factory.mktemp("kernels")
    command = ["-m", "qwen_edit.model.transformer.fused.build", "--folder", str(folder)]
    done = python(*command, environment={**environment, "LD_LIBRARY_PATH": ""})
    assert done.returncode == 0, done.stderr
    return folder


def python(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def kernels(folder: Path, capability: tuple[int, int]) -> list[tuple[str, Path]]:
    """The name and the folder of each kernel that was compiled for a capability."""
    number = 10 * capability[0] + capability[1]
    described: dict[Path, Any] = {
        file: json.loads(file.read_text()) for file in folder.glob("*/*.json") if not file.name.startswith("__grp__")
    }
    return sorted((one["name"], file.parent) for file, one in described.items() if one["target"]["arch"] == number)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda pair: f"{pair[0]}.{pair[1]}")
def test_each_kernel_compiles_for_each_card_without_one(folder: Path, capability: tuple[int, int]) -> None:
    built = kernels(folder, capability)

    quantizing = ["quantize_rows"] * (2 if capability >= (8, 9) else 0)
    assert [name for name, _ in built] == sorted(["gated", "modulate", "norm_rotate", *quantizing])
    for name, place in built:
        assert (place / f"{name}.cubin").read_bytes().startswith(b"\x7fELF")
        ptx = (place / f"{name}.ptx").read_text()
        assert f".target sm_{capability[0]}{capability[1]}" in ptx
        # To the nearest or even, as the interpreter is made to do in `interpreted.py`. On 8.9 Triton 3.6 goes to fp8 by
        # way of float16, which it cuts off: a value that is above a middle between two codes by less than 1/1024 of
        # itself counts as the middle.
        to_fp8 = r"cvt\.rn\.satfinite\.e4m3x2\." + ("(f32|f16x2)" if capability == (8, 9) else "f32")
        assert re.search(to_fp8 if name == "quantize_rows" else r"cvt\.rn\.bf16x2\.f32", ptx)
        # Sixteen bytes at a time.
        assert "ld.global.v4.b32" in ptx
        assert "st.global.v4.b32" in ptx


@pytest.mark.parametrize("text", ["x", "9", "8.0,", "8.0 9.0", "-8.0", ""])
def test_capabilities_that_cannot_be_read_are_named_with_what_was_expected(text: str, tmp_path: Path) -> None:
    command = ["-m", "qwen_edit.model.transformer.fused.build", "--folder", str(tmp_path), f"--capabilities={text}"]
    done = python(*command, environment={**os.environ})

    assert done.returncode == 2
    assert f"argument --capabilities: it is {text!r}, expected capabilities with commas" in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_edit_of_any_length_finds_all_of_it_and_needs_no_compiler(
    folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    if file := shutil.which("file"):
        (tmp_path / "file").symlink_to(file)
    without_compiler = {key: value for key, value in environment.items() if key != "CC"} | {"PATH": str(tmp_path)}

    done = python("-c", EDIT, environment={**without_compiler, "TRITON_CACHE_DIR": str(folder)})
    assert (done.returncode, done.stderr) == (0, "")

    lines = done.stdout.splitlines()
    names = ["gated", "modulate", "norm_rotate", "quantize_rows", "quantize_rows"]
    assert sorted(line for line in lines if not line.startswith("launched")) == [f"found {name}" for name in names]
    assert lines.count("launched 4096") == lines.count("launched 2790") == lines.count("launched 1") == 10
