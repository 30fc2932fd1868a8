"""The worker's own download, from a hub on loopback: programs, because a process asks one hub."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.bake import record
from builder.bake.record import exclusive
from builder.missing import fetch_missing
from builder.verify.directory import verify
from qwen_edit.errors import Cancelled, ModelUnavailable
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_REPOSITORY, LIGHTNING, ORIGINAL
from qwen_edit.store.manifest import Entry, Manifest
from tests.support import baked
from tests.support.loopback_hub import LoopbackHub, held, held_in_the_middle
from tests.support.patience import PATIENCE
from tests.support.places import ROOT
from tests.support.programs import events

SHARD = f"{BASE_FOLDER}/{baked.SHARDS[1]}"

FETCH = """
import sys
from pathlib import Path
from builder.missing import fetch_missing
from qwen_edit.errors import Cancelled
models = Path(sys.argv[1])
"""

CANCELLED_AT_THE_FIRST_BYTES = """
import threading
def begun():
    if not any(path.stat().st_size for path in models.rglob("*lightning*.incomplete")):
        return False
    threading.Thread(target=tell, args=(threading.current_thread(),)).start()
    return True
def tell(watcher):
    watcher.join()  # which gives the word to stop, and ends
    print("stopping", flush=True)
try:
    fetch_missing(models, begun)
except Cancelled as error:
    print(error)
"""


@pytest.fixture
def remote() -> Iterator[LoopbackHub]:
    with LoopbackHub(baked.repositories()) as server:
        yield server


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def start(models: Path, remote: LoopbackHub, program: str = "fetch_missing(models)") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FETCH + program, str(models)],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": remote.url, "HF_HUB_DOWNLOAD_TIMEOUT": f"{PATIENCE:g}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: "subprocess.Popen[str]") -> str:
    """What the program printed."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output


def test_an_empty_directory_gets_the_base_model_and_the_preferred_checkpoint(models: Path, remote: LoopbackHub) -> None:
    end(start(models, remote))

    assert verify(models, every_byte=True).ok
    assert not (models / ORIGINAL.path).exists()
    assert set(remote.revisions.values()) == {"main"}


def held_first(models: Path, remote: LoopbackHub, gate: threading.Event) -> "subprocess.Popen[str]":
    """A worker that waits for the checkpoint until the gate is open."""
    remote.fault(LIGHTNING.file, held(gate))
    first = start(models, remote)
    remote.asked_for(LIGHTNING.file)
    return first


def waiting(process: "subprocess.Popen[str]") -> str:
    """What the program says when it waits."""
    assert process.stdout is not None
    (event,) = events(process.stdout.readline())
    assert event["event"] == "waiting"
    return str(event["said"])


def test_a_second_worker_waits_for_the_first_and_takes_what_it_brings(models: Path, remote: LoopbackHub) -> None:
    gate = threading.Event()
    first = held_first(models, remote, gate)
    second = start(models, remote)

    assert waiting(second) == f"another process is writing to {models}; wait for its end, or stop it"
    gate.set()

    assert [end(first), end(second)] == ["", ""]
    assert len(remote.fetched()) == len(set(remote.fetched()))
    assert verify(models, every_byte=True).ok


def test_a_second_worker_goes_on_where_the_first_was_killed(models: Path, remote: LoopbackHub) -> None:
    gate = threading.Event()
    first = held_first(models, remote, gate)
    second = start(models, remote)
    waiting(second)

    first.kill()
    first.communicate()
    gate.set()

    assert end(second) == ""
    assert verify(models, every_byte=True).ok


def test_waiting_ends_when_the_load_is_cancelled(models: Path) -> None:
    models.mkdir()

    with exclusive(models), pytest.raises(Cancelled, match="the fetch of the weights was cancelled"):
        fetch_missing(models, lambda: True)


def test_a_download_that_is_cancelled_ends_between_blocks_and_is_resumed(models: Path, remote: LoopbackHub) -> None:
    gate = threading.Event()
    remote.fault(LIGHTNING.file, held_in_the_middle(gate))
    process = start(models, remote, CANCELLED_AT_THE_FIRST_BYTES)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    gate.set()
    assert end(process) == "cancelled: the fetch of the weights was cancelled\n"

    assert not (models / LIGHTNING.path).exists()
    (partial,) = models.rglob(f"{LIGHTNING.file}.*.incomplete")
    size = partial.stat().st_size
    remote.heal()
    end(start(models, remote))
    assert [seen.range for seen in remote.seen if seen.path == LIGHTNING.file] == [f"bytes={size}-"]
    assert verify(models, every_byte=True).ok


def test_what_is_mended_stays_at_the_commit_that_the_manifest_names(models: Path, remote: LoopbackHub) -> None:
    baked.write(models)
    (models / SHARD).unlink()

    end(start(models, remote))

    assert remote.revisions == {
        BASE_REPOSITORY: baked.BASE_COMMIT,
        CHECKPOINT_REPOSITORY: baked.CHECKPOINTS_COMMIT,
    }
    assert remote.fetched() == [baked.SHARDS[1]]
    assert verify(models, every_byte=True).ok


def test_files_of_two_commits_are_made_one_again_at_the_commit_of_the_most(models: Path, remote: LoopbackHub) -> None:
    manifest = baked.write(models)
    other = [
        Entry(entry.path, entry.bytes, entry.sha256, entry.repository, "c" * 40) if entry.path == SHARD else entry
        for entry in manifest.files
    ]
    record.write(models, Manifest(tuple(other)))
    (models / SHARD).unlink()

    end(start(models, remote))

    assert remote.revisions[BASE_REPOSITORY] == baked.BASE_COMMIT
    assert not verify(models).notes


def test_a_bake_that_was_cut_before_a_shard_is_finished(models: Path, remote: LoopbackHub) -> None:
    manifest = baked.write(models)
    record.write(models, Manifest(tuple(entry for entry in manifest.files if entry.path != SHARD)))
    (models / SHARD).unlink()

    end(start(models, remote))

    assert verify(models, every_byte=True).ok


def test_weights_that_were_made_here_are_not_mixed_with_fetched_ones(models: Path) -> None:
    manifest = baked.write(models)
    demo = (Entry(entry.path, entry.bytes, entry.sha256, "demo", "1") for entry in manifest.files)
    record.write(models, Manifest(tuple(demo)))
    (models / SHARD).unlink()

    with pytest.raises(ModelUnavailable) as caught:
        fetch_missing(models)

    assert "holds the weights of demo" in str(caught.value.__cause__)
