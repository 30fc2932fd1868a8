import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import record
from builder.bake import Order, bake
from builder.hub import Hub
from builder.progress import Bar
from builder.source import COMPONENTS
from builder.verify import main, verify
from qwen_edit.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY, CHECKPOINTS
from qwen_edit.manifest import FILE_NAME, Entry, Manifest
from qwen_edit.svdq.modules import expected_tensors, total_bytes
from tests.builder import sample

ROOT = Path(__file__).parents[2]
VAE = f"{BASE_FOLDER}/{sample.VAE}"
SHARD = f"{BASE_FOLDER}/{sample.SHARDS[1]}"
LIGHTNING = f"{CHECKPOINT_FOLDER}/{sample.LIGHTNING}"
ORIGINAL = f"{CHECKPOINT_FOLDER}/{sample.ORIGINAL}"
TOKENIZER = f"{BASE_FOLDER}/tokenizer/merges.txt"
INDEX = f"{BASE_FOLDER}/{sample.INDEX}"


@pytest.fixture
def whole(folder: Path) -> Path:
    """A model directory with nothing wrong in it."""
    sample.write(folder)
    return folder


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def replaced(folder: Path, path: str, data: bytes) -> None:
    """Put other bytes at `path` and promise them in the manifest."""
    import hashlib

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


def test_a_whole_directory_is_reported_in_five_lines(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(whole)]) == 0
    size = (whole / LIGHTNING).stat().st_size / 1e6
    total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file() and path.name != FILE_NAME) / 1e6
    assert capsys.readouterr().out.splitlines() == [
        "✓ Base Qwen model found",
        f"✓ {sample.LIGHTNING}: {size:.1f} MB",
        f"✓ {sample.ORIGINAL}: {size:.1f} MB",
        "Found 2/2 Nunchaku models",
        f"Total model cache size: {total:.1f} MB",
    ]


def test_a_directory_of_published_sizes_is_reported_in_gigabytes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_full_size(folder)
    assert main(["--models", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"✓ {sample.LIGHTNING}: 12654.4 MB",
        f"✓ {sample.ORIGINAL}: 12654.4 MB",
        "Found 2/2 Nunchaku models",
        "Total model cache size: 42.1 GB",
    ]


def write_full_size(folder: Path) -> None:
    """A model directory with weights of the published sizes: real headers, and holes for tensors."""
    sample.write(folder)
    tensors = expected_tensors({}, 128)
    header = sample.checkpoint_header(tensors, {})
    for path in (LIGHTNING, ORIGINAL):
        sparse(folder, path, header, total_bytes(tensors))
    for number, path in enumerate(sample.SHARDS):
        half = 2_073_000_000
        names = {
            f"layer.{number}.{i}": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [i * half, (i + 1) * half]}
            for i in (0, 1)
        }
        sparse(folder, f"{BASE_FOLDER}/{path}", sample.safetensors_header(names), 2 * half)
    half = 126_900_000
    names = {
        f"decoder.{i}": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [i * half, (i + 1) * half]}
        for i in (0, 1)
    }
    sparse(folder, VAE, sample.safetensors_header(names), 2 * half)


def sparse(folder: Path, path: str, header: bytes, data: int) -> None:
    manifest = Manifest.read(folder)
    assert manifest
    with (folder / path).open("wb") as file:
        file.write(header)
        file.truncate(len(header) + data)
    entry = Entry(path, len(header) + data, "0" * 64, "x/y", "z")
    record.write(folder, Manifest((*(entry for entry in manifest.files if entry.path != path), entry)))


def test_a_full_size_directory_is_judged_without_reading_its_tensors(folder: Path) -> None:
    write_full_size(folder)
    assert verify(folder).ok
    with (folder / LIGHTNING).open("r+b") as file:
        file.truncate(12_000_000_000)
    (problem,) = verify(folder).problems
    assert problem.sentence.startswith(f"{LIGHTNING} has 12,000,000,000 bytes, 12,654,")


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
    replaced(whole, LIGHTNING, sample.checkpoint(1, rank=32))
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{LIGHTNING} has rank 32, expected 128"


def test_a_checkpoint_of_another_format_is_refused(whole: Path) -> None:
    replaced(whole, LIGHTNING, sample.weights(1, "blocks"))
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(f"{LIGHTNING} does not hold what it should: {sample.LIGHTNING}: the metadata is")


def test_a_tensor_that_the_index_names_must_be_in_its_shard(whole: Path) -> None:
    replaced(whole, SHARD, sample.weights(1, "layer.9"))
    (problem,) = verify(whole).problems
    assert problem.path == SHARD
    assert problem.sentence == f"{SHARD} has no tensor 'layer.1.0' (2 in all) that {INDEX} says it holds"


def test_a_shard_that_the_index_names_must_be_promised(whole: Path) -> None:
    without(whole, SHARD)
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{SHARD} is not in the manifest, and {INDEX} needs it"


def test_an_index_that_is_none_is_found(whole: Path) -> None:
    replaced(whole, INDEX, b"[]")
    (problem,) = verify(whole).problems
    assert problem.sentence.startswith(f"{INDEX} is not an index of weights: ")


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
    assert f"✗ {sample.LIGHTNING}: not there" in out
    assert "Found 0/2 Nunchaku models" in out
    assert "no checkpoint is in the manifest, and serving needs one\n    mend it: python -m builder bake" in out


def test_what_is_wrong_is_told_with_the_command_that_mends_it(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (whole / LIGHTNING).unlink()
    flip(whole / TOKENIZER, 0)
    assert main(["--models", str(whole)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✗ Base Qwen model: 1 problem"
    assert lines[1] == f"✗ {sample.LIGHTNING}: not whole"
    assert lines[3] == "Found 1/2 Nunchaku models"
    bake = f"    mend it: python -m builder bake --models {whole}"
    assert f"{bake} --components configs --revision base={sample.BASE_COMMIT} --hash" in lines
    assert f"{bake} --components lightning --revision checkpoints={sample.CHECKPOINTS_COMMIT} --hash" in lines


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


def test_what_came_from_no_hub_is_mended_by_writing_it_anew(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert manifest
    tiny = (Entry(entry.path, entry.bytes, entry.sha256, "tiny", "random") for entry in manifest.files)
    record.write(whole, Manifest(tuple(tiny)))
    (whole / VAE).unlink()
    (problem,) = verify(whole).problems
    assert problem.command == f"python -m builder tiny --models {whole}"


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


def test_a_directory_that_does_not_exist_is_told(tmp_path: Path) -> None:
    assert main(["--models", str(tmp_path / "nowhere")]) == 1


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


def test_the_list_has_every_file_with_its_size_and_source(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(whole), "--list"]) == 0
    manifest = Manifest.read(whole)
    assert manifest
    lines = capsys.readouterr().out.splitlines()[: len(manifest.files)]
    assert [line.split()[2] for line in lines] == [entry.path for entry in manifest.files]
    assert f"1.6 MB  {LIGHTNING}  {CHECKPOINT_REPOSITORY}@bbbbbbbbbbbb" in lines


def test_the_json_has_the_same_verdict(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(whole), "--json"]) == 0
    good = json.loads(capsys.readouterr().out)
    (whole / ORIGINAL).unlink()
    assert main(["--models", str(whole), "--json"]) == 1
    bad = json.loads(capsys.readouterr().out)
    assert (good["ok"], good["base"], good["checkpoints"]) == (True, True, {"lightning": True, "original": True})
    assert (bad["ok"], bad["base"], bad["checkpoints"]) == (False, True, {"lightning": True, "original": False})
    assert [file["path"] for file in bad["files"] if not file["ok"]] == [ORIGINAL]
    assert [problem["path"] for problem in bad["problems"]] == [ORIGINAL]


def command(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[bytes]":
    program = [sys.executable, str(ROOT / "verify_models.py"), *arguments]
    return subprocess.run(program, capture_output=True, env={**os.environ, **environ}, check=False)


def test_the_command_reads_the_environment_and_needs_no_torch(whole: Path) -> None:
    run = command("--hash", MODEL_CACHE_DIR=str(whole), PYTHONIOENCODING="utf-8", PYTHONPROFILEIMPORTTIME="1")
    assert run.returncode == 0, run.stderr
    assert "✓ Base Qwen model found" in run.stdout.decode()
    imported = {line.rpartition(b"|")[2].strip() for line in run.stderr.splitlines()}
    assert b"builder.verify" in imported
    assert not imported & {b"torch", b"huggingface_hub"}


def test_an_output_that_knows_no_check_mark_gets_plain_ones(whole: Path) -> None:
    (whole / "größe").write_bytes(b"")
    run = command("--models", str(whole), PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(b"[ok] Base Qwen model found\n")
    assert rb"note: gr\xf6\xdfe (0 bytes)" in run.stdout


def test_a_place_that_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = command(MODEL_CACHE_DIR=str(tmp_path / "file"))
    assert run.returncode == 2
    assert run.stderr.decode() == f"error: MODEL_CACHE_DIR is {str(tmp_path / 'file')!r}, which is not a folder\n"


def test_hashing_shows_a_bar_of_all_bytes(whole: Path) -> None:
    stream = io.StringIO()
    verify(whole, every_byte=True, show=lambda what, total: Bar(what, total, stream))
    assert "verify: 100%" in stream.getvalue()


@pytest.mark.parametrize("damage", [lambda file: file.chmod(0)])
def test_a_file_that_may_not_be_read_is_told(damage: Callable[[Path], None], whole: Path) -> None:
    damage(whole / VAE)
    if os.access(whole / VAE, os.R_OK):
        pytest.skip("this user may read everything")
    (problem,) = verify(whole).problems
    assert problem.sentence == f"{VAE} cannot be read: Permission denied"


def test_the_tiny_model_is_whole(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(models, copy)
    report = verify(copy, every_byte=True)
    assert report.ok, report.problems
    assert len(report.promised()) == len(CHECKPOINTS)
