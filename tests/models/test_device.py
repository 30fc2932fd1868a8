from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_edit.backend import BackendName, Card, Engine
from qwen_edit.catalog import LIGHTNING
from qwen_edit.errors import ModelUnavailable
from qwen_edit.memory_plan import Parts, parts_of
from qwen_edit.models.device import Setup, _require_c_compiler, set_up, settle
from qwen_edit.settings import Settings
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
    assert (fields["load_gb"], fields["edit_gb"]) == (49.3, 52.6)


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
    with pytest.raises(ModelUnavailable, match="QWEN_EDIT_COMPILE is 1, but there is no C compiler"):
        _require_c_compiler()

    monkeypatch.setenv("CC", "cc")
    _require_c_compiler()
