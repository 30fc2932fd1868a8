from pathlib import Path

import pytest
import torch

from qwen_edit import Editor
from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.loading.loader import Loader
from qwen_edit.machine import device, setup
from qwen_edit.machine.backend import Card
from qwen_edit.machine.device import MachineSetup, out_of_memory, set_up
from qwen_edit.machine.engine import Engine
from qwen_edit.machine.setup import choose_setup
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.store.folder import base_weights
from qwen_edit.svdq.checkpoint import read_header
from tests.support.published import published_sizes

GB = 10**9


def read(settings: Settings, models: Path) -> MachineSetup:
    return set_up(settings, 10**6, 10**6, read_header(models / LIGHTNING.path))


def test_what_a_cpu_is_said_to_need_is_what_the_model_takes_there(
    models: Path, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(setup, "require_enough", lambda need, *_: needed.append(need))

    Loader.for_device(editor.settings, base_weights(models), LIGHTNING)

    pipeline = editor.pipeline
    modules = (pipeline.prompts.text_encoder, pipeline.vae, pipeline.transformer)
    taken = sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
    assert needed == [pytest.approx(taken, rel=0.03)]


def test_the_memory_of_this_host_is_asked_for_before_anything_is_read(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 10**9)

    with pytest.raises(ModelUnavailable, match=r"of which 1\.0 GB are available"):
        read(Settings(device="cpu"), models)


def test_the_cpu_runs_the_dense_backend_whatever_its_memory(models: Path) -> None:
    found = read(Settings(device="cpu"), models)

    assert (found.device, found.choice.backend) == (torch.device("cpu"), "dense")
    assert (found.memory, found.offload, found.tiling) == (None, "none", False)
    assert found.log_fields() == {
        "backend": "dense",
        "reason": "dense: there is no GPU, which Nunchaku's kernels need",
        "offload": "none",
        "tiling": False,
        "attention": "flash",
    }


def test_the_log_says_what_is_expected_of_the_memory() -> None:
    h200, absent = Card("H200", (9, 0), 149 * GB, 149 * GB), Engine(None, "nunchaku is not installed")
    chosen = choose_setup(Settings(), h200, absent, published_sizes)
    fields = MachineSetup(torch.device("cuda"), *chosen).log_fields()

    assert fields["reason"] == "dense: the GPU H200 (compute capability 9.0) has no int4 tensor cores"
    assert (fields["load_gb"], fields["edit_gb"], fields["host_gb"]) == (49.8, 53.1, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_is_asked_for_and_not_there_is_said(models: Path) -> None:
    with pytest.raises(ModelUnavailable, match="QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device"):
        read(Settings(device="cuda"), models)


def chosen(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, driver: bool) -> str:
    """The device, or the sentence, where PyTorch finds no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "DRIVER", tmp_path / "nvidiactl")
    if driver:
        (tmp_path / "nvidiactl").touch()
    try:
        return device.find_device(Settings.from_environ(environ)).type
    except ModelUnavailable as error:
        return error.sentence


@pytest.mark.parametrize("name", ["NVIDIA_VISIBLE_DEVICES", "RUNPOD_GPU_COUNT"])
@pytest.mark.parametrize("value", ["", " ", "void", "none", "VOID", "0"])
@pytest.mark.parametrize("other", [{}, {"RUNPOD_POD_ID": "a1b2"}, {"CUDA_VISIBLE_DEVICES": "0"}])
def test_a_host_without_a_gpu_serves_on_its_cpu(
    name: str, value: str, other: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = {} if (name, value) == ("NVIDIA_VISIBLE_DEVICES", "0") else {name: value}  # which is the first GPU
    assert chosen({**environ, **other}, monkeypatch, tmp_path, driver=False) == "cpu"


@pytest.mark.parametrize(
    ("environ", "driver", "because"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, False, "NVIDIA_VISIBLE_DEVICES is 'all'"),
        ({"NVIDIA_VISIBLE_DEVICES": "0"}, False, "NVIDIA_VISIBLE_DEVICES is '0'"),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-8a3c"}, True, "NVIDIA_VISIBLE_DEVICES is 'GPU-8a3c'"),
        ({"RUNPOD_GPU_COUNT": "1"}, False, "RUNPOD_GPU_COUNT is '1'"),
        ({"RUNPOD_GPU_COUNT": "10", "NVIDIA_VISIBLE_DEVICES": "void"}, False, "RUNPOD_GPU_COUNT is '10'"),
        ({}, True, "{driver} exists"),
        ({"NVIDIA_VISIBLE_DEVICES": "none", "RUNPOD_GPU_COUNT": "0"}, True, "{driver} exists"),
    ],
)
def test_a_gpu_that_is_meant_and_cannot_be_used_is_said_and_the_cpu_does_not_stand_in(
    environ: dict[str, str], driver: bool, because: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert chosen(environ, monkeypatch, tmp_path, driver=driver) == (
        f"a GPU is meant to serve here, because {because.format(driver=device.DRIVER)}, but PyTorch finds no CUDA "
        "device; mend its driver, or set QWEN_EDIT_DEVICE=cpu to serve on the CPU"
    )
    assert chosen({**environ, "QWEN_EDIT_DEVICE": "cpu"}, monkeypatch, tmp_path, driver=driver) == "cpu"


def test_a_build_that_does_not_multiply_fp8_by_rows_is_told_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, card = torch.device("cpu"), Card("RTX 5090", (12, 0), 33 * GB, 33 * GB)
    products: list[int] = []

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul\nat a place")

    monkeypatch.setattr(torch, "_scaled_mm", lambda *_, **__: products.append(1))
    device.require_row_product(cpu, card)
    assert products == [1]

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    with pytest.raises(
        ModelUnavailable, match=r"RTX 5090 .*: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul; "
    ):
        device.require_row_product(cpu, card)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_read(models: Path) -> None:
    found = read(Settings(), models)

    assert found.device.type == "cuda"
    assert found.memory is not None
    assert found.offload == "none"


def test_compiling_for_the_cpu_without_a_cpp_compiler_is_refused_before_anything_is_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        ModelUnavailable, match=r"QWEN_EDIT_COMPILE is 1, but there is no C\+\+ compiler; install g\+\+"
    ):
        read(Settings(device="cpu", compiled=True), models)

    (tmp_path / "c++").touch(mode=0o755)
    monkeypatch.setenv("CXX", "c++")
    assert read(Settings(device="cpu", compiled=True), models).choice.backend == "dense"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_refusal_of_memory_becomes_the_sentence(error: RuntimeError) -> None:
    with pytest.raises(OutOfMemory, match="too large"), out_of_memory("too large"):
        raise error


def test_another_error_of_the_device_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), out_of_memory("too large"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
