import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.__main__ import main
from builder.bake.errors import UsageError
from builder.bake.parts import CHECKPOINT_NAMES, COMPONENTS, select
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from tests.support.baked import LIGHTNING, ORIGINAL, SHARDS, base_files
from tests.support.loopback_hub import LoopbackHub


def test_the_shards_one_by_one_are_the_text_encoder() -> None:
    names = [name for name in COMPONENTS if name.startswith("text_encoder-")]
    together = [path for path in base_files() if COMPONENTS["text_encoder"].wants(path)]
    assert together == [path for name in names for path in base_files() if COMPONENTS[name].wants(path)] == SHARDS


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("r32", "rank 32 is left out on purpose: rank 128 alone is served"),
        ("svdq-int4_r64-qwen-image-edit.safetensors", "rank 64 is left out on purpose"),
        ("lightning-4steps", "4-step files are left out on purpose"),
        ("fp4", "not in the catalog"),
    ],
)
def test_a_checkpoint_that_is_not_served_is_refused_with_what_exists(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        select((), (name,))
    assert reason in str(caught.value)
    assert f"lightning ({LIGHTNING}) and original ({ORIGINAL})" in str(caught.value)


def test_an_unknown_component_is_refused_with_what_exists() -> None:
    with pytest.raises(UsageError, match="'transformer', expected some of configs, text_encoder, text_encoder-1"):
        select(("transformer",), CHECKPOINT_NAMES)


def builder(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "builder", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, check=False)


def test_the_command_bakes_from_the_endpoint_of_the_environment(folder: Path, remote: LoopbackHub) -> None:
    run = builder("bake", "--components", "vae,lightning", MODEL_CACHE_DIR=str(folder), HF_ENDPOINT=remote.url)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{folder} has 2 files, ")
    assert f"fetched {CHECKPOINT_FOLDER}/{LIGHTNING}, " in run.stderr
    assert "\r" not in run.stderr


def test_the_command_says_which_part_failed_and_what_is_whole(folder: Path, remote: LoopbackHub) -> None:
    del remote.repositories[CHECKPOINT_REPOSITORY].files[ORIGINAL]
    run = builder("bake", "--models", str(folder), HF_ENDPOINT=remote.url)
    assert run.returncode == 1
    *_, error, summary = run.stderr.splitlines()
    assert error == (
        f"error: {CHECKPOINT_REPOSITORY} has no {ORIGINAL} at commit bbbbbbbbbbbb; "
        "pin a commit that has it with --revision checkpoints=COMMIT"
    )
    assert summary == "failed: original; whole: configs, text_encoder, vae, lightning"
    assert verify(folder).ok


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoints", "r32"], "error: --checkpoints has 'r32', and rank 32 is left out on purpose"),
        (["--revision", "main"], "error: --revision is 'main', expected base=REV or checkpoints=REV"),
        (
            ["--revision", "base=v1", "--revision", "checkpoints=v1", "--revision", "base=v2"],
            "error: --revision has base twice, 'v1' and 'v2', expected one",
        ),
        (["--components", ","], "error: --components is ',', expected at least one name, or no --components at all"),
        (["--components", ""], "error: --components is '', expected at least one name"),
        (["--checkpoints", ""], "error: --checkpoints is '', expected at least one name"),
    ],
)
def test_a_mistaken_command_has_a_status_of_its_own(arguments: list[str], sentence: str, folder: Path) -> None:
    run = builder("bake", "--models", str(folder), *arguments)
    assert run.returncode == 2
    assert run.stderr.startswith(sentence)
    assert len(run.stderr.splitlines()) == 1


def test_offline_mode_is_told_in_one_sentence(folder: Path, remote: LoopbackHub) -> None:
    run = builder("bake", "--components", "vae", "--models", str(folder), HF_ENDPOINT=remote.url, HF_HUB_OFFLINE="1")
    assert run.returncode == 1
    expected = f"error: {BASE_REPOSITORY} at main cannot be fetched while HF_HUB_OFFLINE is set; unset it for the bake"
    assert run.stderr.splitlines()[0] == expected


@pytest.mark.parametrize("command", ["bake", "verify", "demo", "tiny"])
@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("", "--models is '', expected the model directory: is a variable there unset?"),
        (" ", "--models is ' ', expected the model directory: is a variable there unset?"),
        ("a" * 300, f"{'a' * 300} cannot be the model directory: File name too long"),
        ("file", "file is not a folder, expected the model directory"),
    ],
)
def test_what_is_no_model_directory_is_refused_by_every_command(
    command: str,
    models: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")

    assert main([command, "--models", models]) == 2

    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
