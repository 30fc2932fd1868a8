import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from builder.bake import record
from builder.bake.hub import Hub
from builder.bake.order import Order, bake
from builder.bake.parts import COMPONENTS
from builder.verify.command import main
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINTS
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest
from tests.support import baked

VAE = f"{BASE_FOLDER}/{baked.VAE}"
SHARD = f"{BASE_FOLDER}/{baked.SHARDS[1]}"
LIGHTNING = f"{CHECKPOINT_FOLDER}/{baked.LIGHTNING}"
ORIGINAL = f"{CHECKPOINT_FOLDER}/{baked.ORIGINAL}"
TOKENIZER = f"{BASE_FOLDER}/tokenizer/merges.txt"
INDEX = f"{BASE_FOLDER}/{baked.INDEX}"


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def replaced(folder: Path, path: str, data: bytes) -> None:
    """Put other bytes at `path` and promise them in the manifest."""
    manifest = Manifest.read(folder)
    assert manifest
    (folder / path).write_bytes(data)
    entry = manifest.entry(path)
    assert entry
    changed = Entry(path, len(data), hashlib.sha256(data).hexdigest(), entry.repository, entry.revision)
    record.write(folder, Manifest(tuple(changed if entry.path == path else entry for entry in manifest.files)))


def without(folder: Path, *paths: str) -> None:
    """Take files away, and their promise too."""
    manifest = Manifest.read(folder)
    assert manifest
    for path in paths:
        (folder / path).unlink()
    record.write(folder, Manifest(tuple(entry for entry in manifest.files if entry.path not in paths)))


@pytest.mark.parametrize("path", [VAE, SHARD, LIGHTNING, ORIGINAL, TOKENIZER, INDEX])
def test_a_flipped_bit_in_any_kind_of_file_is_found_by_hash(path: str, whole: Path) -> None:
    flip(whole / path, -1)
    report = verify(whole, every_byte=True)
    assert [problem.path for problem in report.problems] == [path]
    assert not report.ok


@pytest.mark.parametrize("path", [TOKENIZER, INDEX, f"{BASE_FOLDER}/model_index.json"])
def test_a_flipped_bit_in_a_small_file_is_found_by_default(path: str, whole: Path) -> None:
    flip(whole / path, -1)
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(f"{path} has sha256 ")


@pytest.mark.parametrize("path", [VAE, SHARD, LIGHTNING])
@pytest.mark.parametrize("at", [0, 5, 8])
def test_a_flipped_bit_in_the_frame_of_a_weight_file_is_found_by_default(path: str, at: int, whole: Path) -> None:
    flip(whole / path, at)
    (problem,) = verify(whole).problems
    assert problem.path == path


def test_a_flipped_bit_in_a_tensor_is_left_to_the_hash(whole: Path) -> None:
    flip(whole / VAE, -1)
    assert verify(whole).ok


@pytest.mark.parametrize("path", [VAE, SHARD, LIGHTNING, TOKENIZER])
def test_a_file_cut_short_is_found_by_its_size(path: str, whole: Path) -> None:
    size = (whole / path).stat().st_size
    os.truncate(whole / path, size - 1)
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{path} has {size - 1:,} bytes, {size:,} in the manifest"


@pytest.mark.parametrize("path", [VAE, SHARD, LIGHTNING, TOKENIZER])
def test_a_file_that_is_missing_is_found(path: str, whole: Path) -> None:
    (whole / path).unlink()
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{path} is missing"


def test_a_folder_in_the_place_of_a_file_is_found(whole: Path) -> None:
    (whole / VAE).unlink()
    (whole / VAE).mkdir()
    (problem,) = verify(whole, every_byte=True).problems
    assert problem.sentence == f"{VAE} is not a file"


def test_a_checkpoint_of_another_rank_is_refused(whole: Path) -> None:
    replaced(whole, LIGHTNING, baked.checkpoint(1, rank=32))
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{LIGHTNING} has rank 32, expected 128"


def test_a_checkpoint_of_another_format_is_refused(whole: Path) -> None:
    replaced(whole, LIGHTNING, baked.weights(1, "blocks"))
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(
        f"{LIGHTNING} does not hold what it should: {baked.LIGHTNING}: metadata 'config' is"
    )


def test_a_tensor_that_the_index_names_must_be_in_its_shard(whole: Path) -> None:
    replaced(whole, SHARD, baked.weights(1, "layer.9"))
    (problem,) = verify(whole).problems
    assert problem.path == SHARD
    assert problem.sentence == f"{SHARD} has no tensor 'layer.1.0' (2 in all) that {INDEX} says it holds"


def test_a_shard_that_the_index_names_must_be_promised(whole: Path) -> None:
    without(whole, SHARD)
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{SHARD} is not in the manifest, and {INDEX} needs it"


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b'{"weight_map": {"a": "model-1.safetensors", "b": 7, "c": null}}',
        b'{"weight_map": {"a": ["model-1.safetensors"]}}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_is_none_is_found(text: bytes, whole: Path) -> None:
    replaced(whole, INDEX, text)
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(f"{INDEX} does not hold what it should: {baked.INDEX} is not an index of shards")


def test_shards_without_an_index_are_found_with_the_command_that_brings_it(whole: Path) -> None:
    without(whole, INDEX)
    (problem,) = verify(whole).problems
    names = ", ".join(Path(path).name for path in baked.SHARDS)
    several = "text_encoder has several .safetensors files and nothing that chooses among them"
    assert problem.sentence == f"{BASE_FOLDER}/text_encoder cannot be loaded: {several}: {names}"
    assert problem.command.endswith(f"--components configs --revision base={baked.BASE_COMMIT} --hash")


def test_a_stray_weight_file_that_keeps_a_folder_from_loading_is_found(whole: Path) -> None:
    stray = (whole / VAE).with_name("other one.safetensors")
    stray.write_bytes(b"")
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(f"{BASE_FOLDER}/vae cannot be loaded: vae has several .safetensors files")
    assert problem.command == f"rm '{stray}'"
    subprocess.run(problem.command, shell=True, check=True)
    assert verify(whole).ok


@pytest.mark.parametrize(
    "path",
    [
        f"{BASE_FOLDER}/model_index.json",
        f"{BASE_FOLDER}/transformer/config.json",
        VAE,
        f"{BASE_FOLDER}/vae/config.json",
    ],
)
def test_a_base_model_without_a_needed_file_is_not_whole(path: str, whole: Path) -> None:
    without(whole, path)
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{path} is not in the manifest"


def test_one_checkpoint_is_enough(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(whole, ORIGINAL)
    assert main(["--models", str(whole)]) == 0
    assert "Found 1/1 Nunchaku models" in capsys.readouterr().out


def test_no_checkpoint_is_not_enough(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without(whole, LIGHTNING, ORIGINAL)
    assert main(["--models", str(whole)]) == 1
    out = capsys.readouterr().out
    assert f"✗ {baked.LIGHTNING}: not there" in out
    assert "Found 0/2 Nunchaku models" in out
    assert "no checkpoint is in the manifest, and serving needs one\n    mend it: python -m builder bake" in out


def test_what_is_wrong_is_told_with_the_command_that_mends_it(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole / LIGHTNING).unlink()
    flip(whole / TOKENIZER, 0)
    assert main(["--models", str(whole)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✗ Base Qwen model: 1 problem"
    assert lines[1] == f"✗ {baked.LIGHTNING}: not whole"
    assert lines[3] == "Found 1/2 Nunchaku models"
    bake = f"    mend it: python -m builder bake --models {whole}"
    assert f"{bake} --components configs --revision base={baked.BASE_COMMIT} --hash" in lines
    assert f"{bake} --components lightning --revision checkpoints={baked.CHECKPOINTS_COMMIT} --hash" in lines


@pytest.mark.parametrize("path", [VAE, SHARD, LIGHTNING, TOKENIZER])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_the_command_that_mends_does_mend(path: str, damage: str, whole: Path, hub: Hub) -> None:
    match damage:
        case "flip":
            flip(whole / path, -1)
        case "cut":
            os.truncate(whole / path, 1)
        case "remove":
            (whole / path).unlink()
    (problem,) = verify(whole, every_byte=True).problems
    words = shlex.split(problem.command)
    part = COMPONENTS[words[words.index("--components") + 1]]
    kind, _, revision = words[words.index("--revision") + 1].partition("=")
    assert kind == part.kind
    bake(Order(whole, (part,), {part.kind: revision}, reread="--hash" in words), hub, lambda _: None)
    assert verify(whole, every_byte=True).ok


def test_a_directory_without_a_manifest_is_not_vouched_for(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole / FILE_NAME).unlink()
    assert main(["--models", str(whole)]) == 1
    out = capsys.readouterr().out
    assert "✗ Base Qwen model: nothing vouches for it" in out
    assert f"manifest.json is missing in {whole}, so nothing there is known to be whole" in out


def test_a_manifest_that_cannot_be_read_is_told(whole: Path) -> None:
    (whole / FILE_NAME).write_text("{}")
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith("manifest.json is not a manifest")


def test_files_that_nothing_vouches_for_are_noted_and_do_no_harm(whole: Path) -> None:
    (whole / "stray.bin").write_bytes(bytes(1500))
    (whole / f"{VAE}.abc.incomplete").write_bytes(b"")
    report = verify(whole)
    assert report.ok
    assert report.notes == (
        f"{VAE}.abc.incomplete (0 bytes) is of a bake that was cut; the same bake goes on with it",
        "stray.bin (1.5 kB) is not in the manifest, so nothing vouches for it",
    )


def test_files_of_two_commits_are_noted(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert manifest
    entry = manifest.entry(VAE)
    assert entry
    other = Entry(entry.path, entry.bytes, entry.sha256, entry.repository, "c" * 40)
    record.write(whole, Manifest((*(entry for entry in manifest.files if entry.path != VAE), other)))
    assert verify(whole).notes == (f"the files of {BASE_REPOSITORY} are of 2 commits: aaaaaaaaaaaa, cccccccccccc",)


def test_a_file_that_cannot_be_read_is_told(whole: Path) -> None:
    replaced(whole, TOKENIZER, b"")
    (whole / TOKENIZER).unlink()
    # A process's memory begins with a page that none may read, so this disk is as good as broken.
    (whole / TOKENIZER).symlink_to("/proc/self/mem")
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{TOKENIZER} cannot be read: Input/output error"


def test_the_tiny_model_is_whole(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(models, copy)
    report = verify(copy, every_byte=True)
    assert report.ok, report.problems
    assert len(report.promised()) == len(CHECKPOINTS)
