import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from builder.made import tiny
from qwen_edit.serving import fitness
from qwen_edit.serving.fitness import UnfitError
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, LIGHTNING, ORIGINAL, Checkpoint
from qwen_edit.store.manifest import Manifest
from qwen_edit.svdq.checkpoint import read_header


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "models"))


def run_checks(models: Path) -> None:
    for check in fitness.checks(Settings(models=models)):
        check()


def test_a_whole_model_directory_is_fit(models: Path) -> None:
    run_checks(models)


def test_a_file_that_the_manifest_promises_and_that_is_missing_is_named(copy: Path) -> None:
    (copy / BASE_FOLDER / "model_index.json").unlink()

    with pytest.raises(UnfitError, match=r"model_index\.json is missing, the manifest promises \d+ bytes"):
        run_checks(copy)


def test_a_file_of_another_size_is_named(copy: Path) -> None:
    for path in (copy / LIGHTNING.path, copy / BASE_FOLDER / "tokenizer" / "vocab.json"):
        with path.open("ab") as file:
            file.write(b"\0")
        with pytest.raises(UnfitError, match=rf"{path.name} is \d+ bytes long, the manifest promises \d+ bytes"):
            run_checks(copy)
        path.write_bytes(path.read_bytes()[:-1])


def test_a_checkpoint_of_another_size_than_promised_is_named_though_it_is_whole(copy: Path, tmp_path: Path) -> None:
    tiny.write(tmp_path / "larger")
    shutil.copy(tmp_path / "larger" / LIGHTNING.path, copy / LIGHTNING.path)
    read_header(copy / LIGHTNING.path)

    with pytest.raises(UnfitError, match=rf"{LIGHTNING.file} is \d+ bytes long, the manifest promises \d+ bytes"):
        run_checks(copy)


@pytest.mark.parametrize(("source", "target"), [(ORIGINAL, LIGHTNING), (LIGHTNING, ORIGINAL)])
def test_a_checkpoint_in_the_place_of_the_other_is_told_by_its_values(
    copy: Path, source: Checkpoint, target: Checkpoint
) -> None:
    shutil.copy(copy / source.path, copy / target.path)

    with pytest.raises(UnfitError, match="hold the same weights, the manifest promises two different files"):
        run_checks(copy)


def test_the_same_checkpoint_twice_is_fit_where_no_manifest_promises_two(copy: Path) -> None:
    shutil.copy(copy / ORIGINAL.path, copy / LIGHTNING.path)
    manifest = Manifest.read(copy)
    assert manifest is not None
    same = manifest.entry(ORIGINAL.path)
    assert same is not None
    files = [replace(entry, sha256=same.sha256) if entry.path == LIGHTNING.path else entry for entry in manifest.files]
    (copy / "manifest.json").write_text(Manifest(tuple(files)).dump())

    run_checks(copy)

    (copy / "manifest.json").unlink()
    run_checks(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"damaged"),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    ],
    ids=["damaged", "missing", "longer"],
)
def test_a_checkpoint_that_is_not_the_first_and_not_as_promised_is_logged_and_served_around(
    copy: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    damage(copy / ORIGINAL.path)

    run_checks(copy)

    assert ORIGINAL.file in capsys.readouterr().out


def test_a_checkpoint_that_no_manifest_names_and_is_damaged_is_logged_too(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "manifest.json").unlink()
    (copy / ORIGINAL.path).write_bytes(b"damaged")

    run_checks(copy)

    assert ORIGINAL.file in capsys.readouterr().out


def test_a_worker_that_may_download_leaves_the_files_to_its_load(tmp_path: Path) -> None:
    assert fitness.checks(Settings(models=tmp_path, allow_download=True)) == []


def test_a_manifest_that_is_none_is_said(copy: Path) -> None:
    (copy / "manifest.json").write_text("{")

    with pytest.raises(UnfitError, match=r"manifest\.json"):
        run_checks(copy)


def test_a_damaged_checkpoint_is_named_where_there_is_no_manifest(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    path = copy / LIGHTNING.path
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(UnfitError, match=LIGHTNING.file):
        run_checks(copy)


def test_a_directory_without_checkpoints_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="MODEL_CACHE_DIR"):
        run_checks(tmp_path)


@pytest.mark.parametrize("allow_download", [False, True])
def test_an_engine_that_is_asked_for_and_not_installed_is_said_first(tmp_path: Path, allow_download: bool) -> None:
    first, *others = fitness.checks(Settings(models=tmp_path, backend="nunchaku", allow_download=allow_download))

    with pytest.raises(UnfitError, match="QWEN_EDIT_BACKEND is nunchaku, but nunchaku is not installed; install the"):
        first()
    assert len(others) == (0 if allow_download else 2)
