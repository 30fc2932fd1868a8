import shutil
from pathlib import Path

import pytest

from qwen_edit import fitness
from qwen_edit.catalog import BASE_FOLDER, LIGHTNING, ORIGINAL
from qwen_edit.fitness import UnfitError
from qwen_edit.settings import Settings


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models, tmp_path / "models"))


def run_checks(models: Path) -> None:
    for check in fitness.checks(Settings(models=models)):
        check()


def test_a_whole_model_directory_is_fit(models: Path) -> None:
    run_checks(models)


def test_a_file_that_the_manifest_promises_and_that_is_missing_is_named(copy: Path) -> None:
    (copy / BASE_FOLDER / "tokenizer" / "vocab.json").unlink()

    with pytest.raises(UnfitError, match=r"tokenizer/vocab\.json is missing, the manifest promises \d+ bytes"):
        run_checks(copy)


def test_a_file_of_another_size_is_named(copy: Path) -> None:
    for path in (copy / LIGHTNING.path, copy / BASE_FOLDER / "tokenizer" / "vocab.json"):
        with path.open("ab") as file:
            file.write(b"\0")
        with pytest.raises(UnfitError, match=path.name):
            run_checks(copy)
        path.write_bytes(path.read_bytes()[:-1])


def test_a_damaged_checkpoint_that_is_not_the_first_is_logged_and_served_around(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
