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
    }


def test_the_log_says_what_is_expected_of_the_memory() -> None:
    h200, absent = Card("H200", (9, 0), 149 * GB, 149 * GB), Engine(None, "nunchaku is not installed")
    chosen = choose_setup(Settings(), h200, absent, published_sizes)
    fields = MachineSetup(torch.device("cuda"), *chosen).log_fields()

    assert fields["reason"] == "dense: the GPU H200 (compute capability 9.0) has no int4 tensor cores"
    assert (fields["load_gb"], fields["edit_gb"], fields["host_gb"]) == (49.3, 52.6, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_is_asked_for_and_not_there_is_said(models: Path) -> None:
    with pytest.raises(ModelUnavailable, match="QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device"):
        read(Settings(device="cuda"), models)


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
