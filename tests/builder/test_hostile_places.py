"""Pipes and devices where files are expected, and names that a terminal would obey."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.bake.download import partial_path
from builder.bake.hub import Hub
from builder.bake.order import Order, bake
from builder.bake.parts import COMPONENTS
from builder.bake.printed import printable
from builder.bake.progress import Bar, Lines
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER
from qwen_edit.store.manifest import FILE_NAME, Manifest
from tests.support import baked

RED = "\x1b[31mred"
SHOWN = r"\x1b[31mred"
MERGES = f"{BASE_FOLDER}/tokenizer/merges.txt"
INDEX = f"{BASE_FOLDER}/{baked.INDEX}"
VAE = f"{BASE_FOLDER}/{baked.VAE}"


def builder(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "builder", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, check=False)


def with_pipe(models: Path, path: str) -> None:
    (models / path).unlink(missing_ok=True)
    os.mkfifo(models / path)


@pytest.mark.parametrize("every_byte", [False, True])
@pytest.mark.parametrize("path", [FILE_NAME, MERGES, INDEX, VAE])
def test_a_pipe_is_found_and_not_waited_for(whole: Path, path: str, every_byte: bool) -> None:
    with_pipe(whole, path)

    report = verify(whole, every_byte=every_byte)

    assert path in {problem.path for problem in report.problems}
    assert any("not a " in problem.sentence for problem in report.problems)


def test_a_manifest_that_never_ends_is_refused(whole: Path) -> None:
    (whole / FILE_NAME).unlink()
    (whole / FILE_NAME).symlink_to("/dev/zero")

    (problem,) = verify(whole).problems

    assert problem.sentence == "manifest.json cannot be read: OSError: it is not a regular file"


@pytest.mark.parametrize("path", [FILE_NAME, MERGES, VAE])
def test_a_bake_puts_a_file_in_the_place_of_a_pipe(whole: Path, hub: Hub, path: str) -> None:
    with_pipe(whole, path)

    outcome = bake(Order(whole, tuple(COMPONENTS[name] for name in ("configs", "vae"))), hub, lambda _: None)

    assert not outcome.failures
    assert (whole / path).is_file()


@pytest.mark.parametrize("link", [True, False], ids=["link", "pipe"])
def test_a_partial_file_is_this_bakes_own(folder: Path, hub: Hub, tmp_path: Path, link: bool) -> None:
    (file,) = (one for one in hub.listing("Qwen/Qwen-Image-Edit", "main", print).files if one.path == baked.VAE)
    partial = partial_path(folder / VAE, file)
    partial.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"another's")
    if link:
        partial.symlink_to(elsewhere)
    else:
        os.mkfifo(partial)

    outcome = bake(Order(folder, (COMPONENTS["vae"],)), hub, lambda _: None)

    assert not outcome.failures
    assert (folder / VAE).read_bytes() == baked.base_files()[baked.VAE]
    assert not (folder / VAE).is_symlink()
    assert elsewhere.read_bytes() == b"another's"


def test_a_pipe_in_the_way_of_a_made_model_is_told(tmp_path: Path) -> None:
    (tmp_path / BASE_FOLDER / "vae").mkdir(parents=True)
    os.mkfifo(tmp_path / BASE_FOLDER / "vae" / "config.json")

    done = builder("demo", "--models", str(tmp_path))

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_characters_that_cannot_be_seen_are_written_as_escapes() -> None:
    assert printable("Bücher/模型 ok") == "Bücher/模型 ok"
    assert printable(f"{RED}\r\n\t\x7f\x9b\u202e\udc80") == rf"{SHOWN}\r\n\t\x7f\x9b\u202e\udc80"


@pytest.mark.parametrize("progress", [Bar, Lines])
def test_a_line_beside_the_progress_obeys_nobody(progress: type[Bar] | type[Lines]) -> None:
    stream = io.StringIO()

    with progress("bake", 1, stream) as shown:
        shown.say(f"fetched {RED}")

    assert f"fetched {SHOWN}\n" in stream.getvalue()
    assert RED not in stream.getvalue()


@pytest.mark.parametrize("arguments", [("verify",), ("verify", "--list"), ("bake", "--components", "vae"), ("demo",)])
def test_a_command_prints_no_control_character_of_a_path(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    models = tmp_path / RED
    models.mkdir()
    (models / FILE_NAME).write_text(f'{{"version": 1, "files": [{{"{RED}": 1}}]}}'.replace("\x1b", "\\u001b"))
    (models / RED).write_text("unlisted")

    done = builder(*arguments, MODEL_CACHE_DIR=str(models), HF_ENDPOINT="http://127.0.0.1:1", HF_HUB_OFFLINE="1")

    assert done.returncode != 0
    assert SHOWN in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_revision_with_a_control_character_is_listed_as_its_escape(whole: Path) -> None:
    manifest = Manifest.read(whole)
    assert manifest is not None
    (whole / FILE_NAME).write_text(manifest.dump().replace(baked.BASE_COMMIT, "\\u001b[31mred"))

    done = builder("verify", "--list", "--models", str(whole))

    assert SHOWN in done.stdout
    assert "\x1b" not in done.stdout
