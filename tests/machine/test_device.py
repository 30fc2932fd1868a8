from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_edit import Editor
from qwen_edit.errors import ModelUnavailable, OutOfMemory
from qwen_edit.loading.loader import Loader
from qwen_edit.machine import device
from qwen_edit.machine.backend import BackendName, Card
from qwen_edit.machine.device import Setup, _require_compiler, out_of_memory, set_up, settle
from qwen_edit.machine.engine import Engine
from qwen_edit.machine.gpu_memory import Parts, parts_of
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.store.folder import base_weights
from qwen_edit.svdq import read_header
from qwen_edit.svdq.checkpoint import CheckpointInfo
from qwen_edit.svdq.modules import CONFIG_DEFAULTS, expected_tensors

GB = 10**9
ENGINE, ABSENT = Engine("1.2.1", None), Engine(None, "nunchaku is not installed")


def real(backend: BackendName) -> Parts:
    tensors: Any = expected_tensors(CONFIG_DEFAULTS, rank=128)
    checkpoint = CheckpointInfo("", CONFIG_DEFAULTS, 128, tensors, {})
    return parts_of(backend, 2 * 8_292_166_656, 2 * 126_892_531, checkpoint, packed_modulation=True, window=2)


def read(settings: Settings, models: Path) -> Setup:
    return set_up(settings, 10**6, 10**6, read_header(models / LIGHTNING.path), packed_modulation=True, window=2)


def card(name: str, capability: tuple[int, int], free: float) -> Card:
    return Card(name, capability, int(free * GB), int(free * GB))


# card, settings, whether the engine is there, backend and offload
TABLE = [
    (card("RTX 3090", (8, 6), 25), {}, True, "nunchaku", "model"),
    (card("RTX 3090", (8, 6), 25), {"offload": "blocks"}, True, "nunchaku", "blocks"),
    (card("L40S", (8, 9), 47.1), {}, True, "nunchaku", "none"),
    (card("L40S", (8, 9), 47.1), {"offload": "model"}, False, "dense", "model"),
    (card("L40S", (8, 9), 47.1), {"backend": "dense"}, True, "dense", "model"),
    (card("L40S", (8, 9), 47.1), {"backend": "dense-fp8"}, False, "dense-fp8", "none"),
    (card("A100 40 GB", (8, 0), 41.8), {}, True, "nunchaku", "none"),
    (card("A100 80 GB", (8, 0), 84.4), {}, True, "dense", "none"),
    (card("A100 80 GB", (8, 0), 84.4), {"backend": "nunchaku"}, True, "nunchaku", "none"),
    (card("H200", (9, 0), 149), {}, False, "dense", "none"),
    (card("H200", (9, 0), 149), {"backend": "dense-fp8", "offload": "model"}, False, "dense-fp8", "model"),
    (card("RTX 5090", (12, 0), 33.2), {"backend": "dense-fp8"}, False, "dense-fp8", "model"),
]


@pytest.mark.parametrize(("device", "asked", "engine", "backend", "offload"), TABLE, ids=str)
def test_each_card_gets_a_backend_and_an_offload(
    device: Card, asked: dict[str, Any], engine: bool, backend: str, offload: str
) -> None:
    choice, plan = settle(Settings(**asked), device, ENGINE if engine else ABSENT, real)

    assert plan is not None
    assert (choice.backend, plan.offload) == (backend, offload)


def test_a_card_that_is_too_small_for_dense_and_would_do_for_fp8_is_told_so() -> None:
    with pytest.raises(
        ModelUnavailable, match=r"and the GPU RTX 5090 has 33\.2 GB free; QWEN_EDIT_BACKEND=dense-fp8 fits"
    ):
        settle(Settings(), card("RTX 5090", (12, 0), 33.2), ABSENT, real)
    with pytest.raises(ModelUnavailable, match=r"has 16\.0 GB free$"):
        settle(Settings(), card("RTX 5080", (12, 0), 16), ABSENT, real)
    with pytest.raises(ModelUnavailable, match=r"has 33\.2 GB free$"):
        settle(Settings(backend="dense"), card("RTX 5090", (12, 0), 33.2), ABSENT, real)


# card, settings, whether the engine is there, GB of the host's memory that are too few and that suffice, the way out
SMALL_HOSTS = [
    (card("RTX 3090", (8, 6), 25), {}, True, 30, 31, "take a host with more memory, or a GPU with "),
    (card("L40S", (8, 9), 47.1), {"offload": "model"}, True, 20, 40, "set QWEN_EDIT_OFFLOAD=none, which fits"),
    (
        card("L40S", (8, 9), 47.1),
        {"backend": "dense"},
        True,
        48,
        49,
        "take a host with more memory, or a GPU with ",
    ),
    (card("RTX 3090", (8, 6), 25), {"offload": "blocks"}, True, 33, 36, "set QWEN_EDIT_OFFLOAD=model, which fits"),
]


@pytest.mark.parametrize(("device", "asked", "engine", "few", "enough", "way_out"), SMALL_HOSTS, ids=str)
def test_weights_that_wait_in_too_small_a_host_are_refused_with_the_figures(
    device: Card, asked: dict[str, Any], engine: bool, few: float, enough: float, way_out: str
) -> None:
    found = ENGINE if engine else ABSENT
    with pytest.raises(ModelUnavailable) as refused:
        settle(Settings(**asked), device, found, real, int(few * GB))

    assert f"of which {few:.1f} GB are available; {way_out}" in refused.value.sentence
    assert settle(Settings(**asked), device, found, real, int(enough * GB))[1] is not None


def test_a_host_of_any_size_will_do_where_nothing_waits_in_it() -> None:
    _, plan = settle(Settings(), card("H200", (9, 0), 149), ABSENT, real, 10**6)

    assert plan is not None
    assert plan.host == 0


def in_float32(backend: BackendName) -> Parts:
    tensors: Any = expected_tensors(CONFIG_DEFAULTS, rank=128)
    checkpoint = CheckpointInfo("", CONFIG_DEFAULTS, 128, tensors, {})
    return parts_of(
        backend, 4 * 8_292_166_656, 4 * 126_892_531, checkpoint, itemsize=4, packed_modulation=True, window=2
    )


def test_a_cpu_with_too_little_memory_for_the_model_in_float32_is_refused_with_the_figures() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        settle(Settings(), None, ABSENT, in_float32, 64 * GB)

    assert refused.value.sentence == (
        "the weights on the CPU take 92.0 GB of the host's memory, and the process 1.2 GB beside them, "
        "of which 64.0 GB are available; take a host with more memory, or a GPU"
    )
    assert settle(Settings(), None, ABSENT, in_float32, 96 * GB)[0].backend == "dense"


def test_what_a_cpu_is_said_to_need_is_what_the_model_takes_there(
    models: Path, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(device, "require_enough", lambda need, *_: needed.append(need))

    Loader.for_device(editor.settings, base_weights(models), LIGHTNING)

    pipeline = editor._pipeline
    modules = (pipeline.text_encoder, pipeline.vae, pipeline.transformer)
    taken = sum(tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers()))
    assert needed == [pytest.approx(taken, rel=0.03)]


def test_the_memory_of_this_host_is_asked_for_before_anything_is_read(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "available_bytes", lambda: 10**9)

    with pytest.raises(ModelUnavailable, match=r"of which 1\.0 GB are available"):
        read(Settings(device="cpu"), models)


@pytest.mark.parametrize("offload", ["model", "blocks"])
def test_the_cpu_has_no_memory_of_a_gpu_to_save(offload: Any) -> None:
    with pytest.raises(ModelUnavailable, match=f"QWEN_EDIT_OFFLOAD is {offload}, which saves the memory of a GPU"):
        settle(Settings(offload=offload), None, ABSENT, real)


def test_the_cpu_runs_the_dense_backend_whatever_its_memory(models: Path) -> None:
    setup = read(Settings(device="cpu"), models)

    assert (setup.device, setup.choice.backend) == (torch.device("cpu"), "dense")
    assert (setup.memory, setup.offload, setup.tiling) == (None, "none", False)
    assert setup.log_fields() == {
        "backend": "dense",
        "reason": "dense: there is no GPU, which Nunchaku's kernels need",
        "offload": "none",
        "tiling": False,
    }


def test_the_log_says_what_is_expected_of_the_memory() -> None:
    settings, device = Settings(), card("H200", (9, 0), 149)
    fields = Setup(torch.device("cuda"), *settle(settings, device, ABSENT, real)).log_fields()

    assert fields["reason"] == "dense: the GPU H200 (compute capability 9.0) has no int4 tensor cores"
    assert (fields["load_gb"], fields["edit_gb"], fields["host_gb"]) == (49.3, 52.6, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_is_asked_for_and_not_there_is_said(models: Path) -> None:
    with pytest.raises(ModelUnavailable, match="QWEN_EDIT_DEVICE is cuda, but PyTorch finds no CUDA device"):
        read(Settings(device="cuda"), models)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_read(models: Path) -> None:
    setup = read(Settings(), models)

    assert setup.device.type == "cuda"
    assert setup.memory is not None
    assert setup.offload == "none"


def test_compiling_for_a_gpu_without_a_c_compiler_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ModelUnavailable, match=r"QWEN_EDIT_COMPILE is 1, but there is no C compiler; install gcc"):
        _require_compiler("cuda")

    monkeypatch.setenv("CC", "cc")
    _require_compiler("cuda")


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


@pytest.mark.parametrize(("asked", "name"), [({}, "L40S"), ({"backend": "nunchaku"}, "A100 80 GB")])
def test_to_compile_the_engines_blocks_is_refused(asked: dict[str, Any], name: str) -> None:
    (gpu,) = {row[0] for row in TABLE if row[0].name == name}
    with pytest.raises(ModelUnavailable, match=r"QWEN_EDIT_COMPILE is 1, but the nunchaku backend runs"):
        settle(Settings(compiled=True, **asked), gpu, ENGINE, real)

    assert settle(Settings(compiled=True, backend="dense"), gpu, ENGINE, real)[0].backend == "dense"


def test_a_card_that_would_run_dense_by_turns_is_told_so_where_the_engine_is_missing() -> None:
    l40s = card("L40S", (8, 9), 47.1)
    with pytest.raises(ModelUnavailable, match=r"it fits only with QWEN_EDIT_OFFLOAD=model, but nunchaku is not"):
        settle(Settings(), l40s, ABSENT, real, 60 * GB)
    with pytest.raises(ModelUnavailable, match=r"without them it does not fit, but nunchaku is not"):
        settle(Settings(), l40s, ABSENT, real, 40 * GB)


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
