"""A model directory holds the model of one source: no command replaces or mixes what another brought."""

import hashlib
import shlex
from pathlib import Path

import pytest

from builder.__main__ import main
from builder.bake import record
from builder.bake.errors import OccupiedError
from builder.bake.hub import Hub
from builder.bake.order import Order, bake
from builder.bake.parts import BASE, COMPONENTS
from builder.made.demo import files
from builder.made.publish import publishing
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_REPOSITORY, LIGHTNING
from qwen_edit.store.manifest import FILE_NAME, MADE_HERE, Entry, Manifest
from tests.support import baked
from tests.support.loopback_hub import LoopbackHub
from tests.support.programs import files_below

VAE = f"{BASE_FOLDER}/{baked.VAE}"
REMEDY = "; choose another directory with --models or MODEL_CACHE_DIR, or remove what is there"


def publish(models: Path, content: dict[str, bytes], source: str = "demo") -> None:
    with publishing(models, source, "1") as folder:
        for path, data in content.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def of_source(models: Path, source: str) -> None:
    """Let the manifest say that every file came from `source`."""
    manifest = Manifest.read(models)
    assert manifest
    entries = (Entry(entry.path, entry.bytes, entry.sha256, source, "1") for entry in manifest.files)
    record.write(models, Manifest(tuple(entries)))


@pytest.mark.parametrize("command", MADE_HERE)
def test_weights_from_the_hub_are_not_replaced(command: str, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(whole)

    assert main([command, "--models", str(whole)]) == 1

    held = f"the weights of {BASE_REPOSITORY}, {CHECKPOINT_REPOSITORY}"
    assert capsys.readouterr().err == f"error: {whole} holds {held}{REMEDY}\n"
    assert files_below(whole) == before


@pytest.mark.parametrize(("command", "there"), [("demo", "tiny"), ("tiny", "demo")])
def test_the_models_that_are_made_here_do_not_replace_each_other(
    command: str, there: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_source(whole, there)
    before = files_below(whole)

    assert main([command, "--models", str(whole)]) == 1

    assert capsys.readouterr().err == f"error: {whole} holds the weights of {there}{REMEDY}\n"
    assert files_below(whole) == before


@pytest.mark.parametrize("path", [VAE, f"{BASE_FOLDER}/text_encoder/model-00003-of-00004.safetensors", LIGHTNING.path])
def test_weights_that_no_manifest_lists_are_not_replaced(
    path: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_bytes(b"real")

    assert main(["demo", "--models", str(folder)]) == 1

    assert capsys.readouterr().err == f"error: {folder} holds {path}, which no manifest there lists{REMEDY}\n"
    assert files_below(folder) == {path: b"real"}


def test_weights_behind_a_link_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "vae").mkdir(parents=True)
    (real / baked.VAE).write_bytes(b"real")
    (folder / BASE_FOLDER).mkdir(parents=True)
    (folder / BASE_FOLDER / "vae").symlink_to(real / "vae")

    with pytest.raises(OccupiedError, match="vae/"):
        files.write(folder)

    assert files_below(real) == {baked.VAE: b"real"}


def test_a_directory_whose_manifest_cannot_be_read_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()
    (folder / FILE_NAME).write_text("{}")

    assert main(["demo", "--models", str(folder)]) == 1

    assert f"{folder} holds what cannot be told: manifest.json is not a manifest" in capsys.readouterr().err
    assert files_below(folder) == {FILE_NAME: b"{}"}


@pytest.mark.parametrize("source", MADE_HERE)
def test_a_bake_does_not_mix_with_a_model_that_was_made_here(
    source: str, whole: Path, hub: Hub, remote: LoopbackHub
) -> None:
    of_source(whole, source)
    (whole / VAE).unlink()
    before = files_below(whole)

    with pytest.raises(OccupiedError, match=f"holds the weights of {source}; choose another directory"):
        bake(Order(whole, BASE), hub, lambda _: None)

    assert files_below(whole) == before
    assert not remote.seen


def test_the_same_command_runs_over_its_own_output(folder: Path) -> None:
    files.write(folder)
    before = files_below(folder)
    (folder / VAE).write_bytes(b"damaged")
    (folder / LIGHTNING.path).unlink()

    files.write(folder)

    assert files_below(folder) == before


def test_a_run_that_was_cut_is_finished_by_the_same_command(folder: Path) -> None:
    files.write(folder)
    before = files_below(folder)
    (folder / FILE_NAME).unlink()
    (folder / LIGHTNING.path).unlink()
    (folder / "demo.incomplete").mkdir()
    (folder / "demo.incomplete" / "half").write_bytes(b"")

    files.write(folder)

    assert files_below(folder) == before


def test_what_a_newer_model_has_no_more_is_removed_and_nothing_else(folder: Path) -> None:
    publish(folder, {"a/old": b"1", "a/both": b"1"})
    (folder / "mine.txt").write_bytes(b"mine")

    publish(folder, {"a/both": b"2", "a/new": b"2"})

    found = files_below(folder)
    found.pop(FILE_NAME)
    assert found == {"a/both": b"2", "a/new": b"2", "mine.txt": b"mine"}
    manifest = Manifest.read(folder)
    assert manifest == Manifest(
        tuple(Entry(path, 1, hashlib.sha256(b"2").hexdigest(), "demo", "1") for path in ("a/both", "a/new"))
    )


def test_a_model_that_cannot_be_finished_leaves_the_directory_as_it_was(folder: Path) -> None:
    publish(folder, {"a": b"1"})
    before = files_below(folder)

    with pytest.raises(TypeError):
        publish(folder, {"a": b"2", "b": "not bytes"})  # type: ignore[dict-item]

    assert files_below(folder) == before


def test_a_directory_that_another_process_writes_to_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.mkdir()

    with record.exclusive(folder):
        assert main(["demo", "--models", str(folder)]) == 1

    assert f"another process is writing to {folder}; wait for its end" in capsys.readouterr().err
    assert files_below(folder) == {}


@pytest.mark.parametrize("command", MADE_HERE)
def test_a_place_that_cannot_be_written_is_told_in_one_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--models", "/proc/x"]) == 1

    fault = "/proc/x cannot be written: No such file or directory; check the folder's owner and permissions"
    assert capsys.readouterr().err == f"error: {fault}\n"


@pytest.mark.parametrize("source", MADE_HERE)
@pytest.mark.parametrize("path", [VAE, LIGHTNING.path])
def test_the_command_that_mends_is_that_of_the_source(source: str, path: str, whole: Path) -> None:
    of_source(whole, source)
    (whole / path).unlink()

    (problem,) = verify(whole).problems

    assert problem.command == f"python -m builder {source} --models {whole}"


def test_the_command_that_mends_does_mend_the_demo(folder: Path) -> None:
    files.write(folder)
    (folder / VAE).write_bytes(b"")
    (problem,) = verify(folder).problems

    assert main(shlex.split(problem.command)[3:]) == 0

    assert verify(folder, every_byte=True).ok


def test_what_a_demo_has_not_in_its_manifest_is_brought_by_the_demo(whole: Path) -> None:
    of_source(whole, "demo")
    manifest = Manifest.read(whole)
    assert manifest
    record.write(whole, Manifest(tuple(entry for entry in manifest.files if entry.path.startswith(BASE_FOLDER))))

    (problem,) = verify(whole).problems

    assert problem.sentence == "no checkpoint is in the manifest, and serving needs one"
    assert problem.command == f"python -m builder demo --models {whole}"


def test_what_came_from_an_unknown_source_is_baked_without_its_revision(whole: Path) -> None:
    of_source(whole, "some/fork")
    (whole / VAE).unlink()

    (problem,) = verify(whole).problems

    assert problem.command == f"python -m builder bake --models {whole} --components {COMPONENTS['vae'].name} --hash"
