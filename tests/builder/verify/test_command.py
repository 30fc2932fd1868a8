import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.bake import record
from builder.bake.progress import Bar
from builder.verify.command import main
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest
from qwen_edit.svdq.modules import expected_tensors, total_bytes
from tests.support import baked
from tests.support.places import ROOT

VAE = f"{BASE_FOLDER}/{baked.VAE}"
LIGHTNING = f"{CHECKPOINT_FOLDER}/{baked.LIGHTNING}"
ORIGINAL = f"{CHECKPOINT_FOLDER}/{baked.ORIGINAL}"


def test_a_whole_directory_is_reported_in_five_lines(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(whole)]) == 0
    size = (whole / LIGHTNING).stat().st_size / 1e6
    total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file() and path.name != FILE_NAME) / 1e6
    assert capsys.readouterr().out.splitlines() == [
        "✓ Base Qwen model found",
        f"✓ {baked.LIGHTNING}: {size:.1f} MB",
        f"✓ {baked.ORIGINAL}: {size:.1f} MB",
        "Found 2/2 Nunchaku models",
        f"Total model cache size: {total:.1f} MB",
    ]


def test_a_directory_of_published_sizes_is_reported_in_gigabytes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_full_size(folder)
    assert main(["--models", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"✓ {baked.LIGHTNING}: 12654.4 MB",
        f"✓ {baked.ORIGINAL}: 12654.4 MB",
        "Found 2/2 Nunchaku models",
        "Total model cache size: 42.1 GB",
    ]


def write_full_size(folder: Path) -> None:
    """A model directory with weights of the published sizes: real headers, and holes for tensors."""
    baked.write(folder)
    tensors = expected_tensors({}, 128)
    header = baked.checkpoint_header(tensors, {})
    for path in (LIGHTNING, ORIGINAL):
        sparse(folder, path, header, total_bytes(tensors))
    for number, path in enumerate(baked.SHARDS):
        half = 2_073_000_000
        names = {
            f"layer.{number}.{i}": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [i * half, (i + 1) * half]}
            for i in (0, 1)
        }
        sparse(folder, f"{BASE_FOLDER}/{path}", baked.safetensors_header(names), 2 * half)
    half = 126_900_000
    names = {
        f"decoder.{i}": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [i * half, (i + 1) * half]}
        for i in (0, 1)
    }
    sparse(folder, VAE, baked.safetensors_header(names), 2 * half)


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


def test_a_directory_that_does_not_exist_is_told(tmp_path: Path) -> None:
    assert main(["--models", str(tmp_path / "nowhere")]) == 1


def test_the_list_has_every_file_with_its_size_and_source(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", str(whole), "--list"]) == 0
    manifest = Manifest.read(whole)
    assert manifest
    lines = capsys.readouterr().out.splitlines()[: len(manifest.files)]
    assert [line.split()[2] for line in lines] == [entry.path for entry in manifest.files]
    assert f"   1.6 MB  {LIGHTNING}  {CHECKPOINT_REPOSITORY}@bbbbbbbbbbbb" in lines


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
    assert run.stderr.decode() == f"error: {tmp_path / 'file'} is not a folder, expected the model directory\n"


def test_hashing_shows_a_bar_of_all_bytes(whole: Path) -> None:
    stream = io.StringIO()
    verify(whole, every_byte=True, show=lambda what, total: Bar(what, total, stream))
    assert "verify: 100%" in stream.getvalue()
