import sys
from pathlib import Path

import pytest

from qwen_edit.errors import ModelUnavailable
from qwen_edit.machine.backend import Card, choose_backend
from qwen_edit.machine.engine import Engine, find_engine

GB = 10**9
ENGINE = Engine("1.2.1+cu12.8torch2.10", None)
ABSENT = Engine(None, "nunchaku is not installed")
UNRELATED = Engine("0.16", "the nunchaku 0.16 that is installed is another package")


def card(name: str, capability: tuple[int, int], gigabytes: int, vendor: str = "NVIDIA") -> Card:
    return Card(name, capability, gigabytes * GB, gigabytes * GB, vendor)  # type: ignore[arg-type]


RTX_3090 = card("NVIDIA GeForce RTX 3090", (8, 6), 25)
A100_80 = card("NVIDIA A100-SXM4-80GB", (8, 0), 85)
A100_40 = card("NVIDIA A100-SXM4-40GB", (8, 0), 42)
L40S = card("NVIDIA L40S", (8, 9), 48)
H200 = card("NVIDIA H200", (9, 0), 150)
RTX_5090 = card("NVIDIA GeForce RTX 5090", (12, 0), 34)
MI300X = card("AMD Instinct MI300X", (9, 4), 206, vendor="AMD")

# card, whether the dense model fits it, what runs with the engine and what without; None is an error
TABLE = [
    (RTX_3090, False, "nunchaku", None),
    (card("NVIDIA A10", (8, 6), 24), False, "nunchaku", None),
    (card("NVIDIA A40", (8, 6), 48), False, "nunchaku", None),
    (card("NVIDIA RTX A6000", (8, 6), 51), False, "nunchaku", None),
    (card("NVIDIA GeForce RTX 4090", (8, 9), 25), False, "nunchaku", None),
    (card("NVIDIA L4", (8, 9), 24), False, "nunchaku", None),
    (card("NVIDIA L40", (8, 9), 48), False, "nunchaku", None),
    (L40S, False, "nunchaku", None),
    (L40S, True, "nunchaku", "dense"),
    (card("NVIDIA RTX 6000 Ada Generation", (8, 9), 51), False, "nunchaku", None),
    (A100_40, False, "nunchaku", None),
    (A100_80, True, "dense", "dense"),
    (card("NVIDIA H100 80GB HBM3", (9, 0), 85), True, "dense", "dense"),
    (H200, True, "dense", "dense"),
    (card("NVIDIA B200", (10, 0), 190), True, "dense", "dense"),
    (RTX_5090, False, "dense", "dense"),  # what then runs out of memory is refused by the memory plan
    (card("NVIDIA RTX PRO 6000 Blackwell", (12, 0), 102), True, "dense", "dense"),
    (card("Orin", (8, 7), 64), True, "dense", "dense"),
    (MI300X, True, "dense", "dense"),
    (None, True, "dense", "dense"),
]
BEFORE_AMPERE = [
    card("Tesla T4", (7, 5), 16),
    card("NVIDIA GeForce RTX 2080 Ti", (7, 5), 11),
    card("Tesla V100-SXM2-32GB", (7, 0), 34),
]


@pytest.mark.parametrize(("device", "dense_fits", "with_engine", "without"), TABLE, ids=lambda value: str(value))
def test_auto_chooses_by_card_engine_and_memory(
    device: Card | None, dense_fits: bool, with_engine: str, without: str | None
) -> None:
    choice = choose_backend(device, ENGINE, "auto", dense_fits=dense_fits)
    assert (choice.backend, choice.warning) == (with_engine, None)
    assert choice.reason.startswith(f"{with_engine}: ")

    for engine in (ABSENT, UNRELATED):
        if without is None:
            with pytest.raises(ModelUnavailable, match=engine.fault):
                choose_backend(device, engine, "auto", dense_fits=dense_fits)
        else:
            assert choose_backend(device, engine, "auto", dense_fits=dense_fits).backend == without


@pytest.mark.parametrize("device", BEFORE_AMPERE, ids=str)
@pytest.mark.parametrize("asked", ["auto", "nunchaku", "dense", "dense-fp8"])
def test_a_card_without_bfloat16_is_refused_whatever_is_asked(device: Card, asked: str) -> None:
    with pytest.raises(ModelUnavailable, match=rf"{device.name} has compute capability 7\.\d, expected 8\.0 or later"):
        choose_backend(device, ENGINE, asked, dense_fits=True)  # type: ignore[arg-type]


def test_dense_instead_of_nunchaku_is_said_in_a_warning() -> None:
    choice = choose_backend(L40S, UNRELATED, "auto", dense_fits=True)

    assert choice.warning == (
        "the GPU NVIDIA L40S (compute capability 8.9) would run Nunchaku's int4 kernels, "
        "but the nunchaku 0.16 that is installed is another package, so the dense backend runs"
    )
    assert choice.warning in choice.reason
    assert "not the unrelated package" in choice.reason


def test_no_backend_that_fits_is_an_error_that_says_how_to_install_the_engine() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_backend(RTX_3090, ABSENT, "auto", dense_fits=False)

    assert refused.value.sentence == (
        "the GPU NVIDIA GeForce RTX 3090 (compute capability 8.6) runs this model with Nunchaku's int4 kernels, and "
        "without them it does not fit, but nunchaku is not installed; install the release wheel of "
        "github.com/nunchaku-ai/nunchaku for this Python and torch, not the unrelated package of that name on the "
        "package index"
    )


def test_no_backend_that_fits_as_a_whole_names_the_offload_with_which_the_dense_one_does() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_backend(A100_40, ABSENT, "auto", dense_fits=False, dense_fits_offloaded=True)

    assert refused.value.sentence == (
        "the GPU NVIDIA A100-SXM4-40GB (compute capability 8.0) runs this model with Nunchaku's int4 kernels, and "
        "without them it fits only with QWEN_EDIT_OFFLOAD=model, but nunchaku is not installed; set that, or install "
        "the release wheel of github.com/nunchaku-ai/nunchaku for this Python and torch, not the unrelated package of "
        "that name on the package index"
    )


@pytest.mark.parametrize(
    ("device", "engine", "asked", "sentence"),
    [
        (H200, ENGINE, "nunchaku", "the GPU NVIDIA H200 (compute capability 9.0) has no int4 tensor cores"),
        (RTX_5090, ENGINE, "nunchaku", "Nunchaku runs fp4 files, not these int4 ones"),
        (MI300X, ENGINE, "nunchaku", "the AMD GPU AMD Instinct MI300X does not run"),
        (None, ENGINE, "nunchaku", "there is no GPU"),
        (L40S, ABSENT, "nunchaku", "nunchaku is not installed; install the release wheel"),
        (L40S, UNRELATED, "nunchaku", "is another package; install the release wheel"),
        (A100_80, ENGINE, "dense-fp8", "has no fp8 tensor cores, which begin with 8.9; leave it out or set dense"),
        (MI300X, ENGINE, "dense-fp8", "has not been tried"),
    ],
)
def test_what_is_asked_for_and_cannot_run_is_one_sentence(
    device: Card | None, engine: Engine, asked: str, sentence: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        choose_backend(device, engine, asked, dense_fits=True)  # type: ignore[arg-type]

    assert refused.value.sentence.startswith(f"QWEN_EDIT_BACKEND is {asked}, but ")
    assert sentence in refused.value.sentence


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        (A100_80, "nunchaku"),
        (L40S, "dense"),
        (RTX_3090, "dense"),
        (H200, "dense-fp8"),
        (RTX_5090, "dense-fp8"),
        (L40S, "dense-fp8"),
        (None, "dense-fp8"),
        (None, "dense"),
    ],
)
def test_what_is_asked_for_and_can_run_runs(device: Card | None, asked: str) -> None:
    assert choose_backend(device, ENGINE, asked, dense_fits=False).backend == asked  # type: ignore[arg-type]


def test_auto_never_chooses_what_has_not_been_measured() -> None:
    for device, dense_fits, *_ in TABLE:
        assert choose_backend(device, ENGINE, "auto", dense_fits=dense_fits).backend != "dense-fp8"


def install(site: Path, version: str, *modules: str) -> None:
    for module in modules:
        (site / "nunchaku" / module).mkdir(parents=True, exist_ok=True)
        (site / "nunchaku" / module / "__init__.py").touch()
    (site / "nunchaku" / "__init__.py").write_text("raise RuntimeError('imported')")
    (site / f"nunchaku-{version}.dist-info").mkdir()
    (site / f"nunchaku-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: nunchaku\nVersion: {version}\n"
    )


def test_an_engine_that_is_not_there_is_found_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == ABSENT


def test_the_engine_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "1.2.1", "models/transformers")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == Engine("1.2.1", None)


def test_the_unrelated_package_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "0.16", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == UNRELATED


@pytest.mark.parametrize(
    ("built_for", "torch", "fault"),
    [("2.10", "2.10.3+cu128", False), ("2.10", "2.13.0+cpu", True), ("2.10", "2.1.0", True), ("2.1", "2.10.0", True)],
)
def test_a_wheel_for_another_torch_is_a_fault(
    built_for: str, torch: str, fault: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, f"1.2.1+cu12.8torch{built_for}", "models/transformers")
    (tmp_path / f"torch-{torch}.dist-info").mkdir()
    (tmp_path / f"torch-{torch}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {torch}\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    sentence = f"nunchaku 1.2.1+cu12.8torch{built_for} was built for torch {built_for}, and torch {torch} is installed"
    assert find_engine().fault == (sentence if fault else None)
