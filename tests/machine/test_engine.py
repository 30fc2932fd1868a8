import sys
from pathlib import Path

import pytest

from qwen_edit.machine.engine import Engine, find_engine


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

    assert find_engine() == Engine(None, "nunchaku is not installed")


def test_the_engine_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "1.2.1", "models/transformers")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == Engine("1.2.1", None, has_fused_product=False)


@pytest.mark.parametrize(
    ("text", "has"),
    [("def fused_qkv_norm_rottary(x): ...", True), ("def fused_gelu_mlp(x): ...", False), (None, False)],
)
def test_whether_the_engine_has_the_fused_product_is_seen_without_importing_it(
    text: str | None, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "1.2.1", "models/transformers", "ops")
    if text:
        (tmp_path / "nunchaku" / "ops" / "fused.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == Engine("1.2.1", None, has)


def test_the_unrelated_package_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "0.16", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert find_engine() == Engine("0.16", "the nunchaku 0.16 that is installed is another package")


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
