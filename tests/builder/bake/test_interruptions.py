import os
import random
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder.bake.download import fetch, partial_path
from builder.bake.errors import BakeError, StoppedError
from builder.bake.hub import Hub
from builder.bake.order import Order, bake
from builder.bake.parts import COMPONENTS
from builder.bake.record import Record
from builder.bake.tasks import tasks
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER
from qwen_edit.store.manifest import Manifest
from tests.support.baked import LIGHTNING, VAE, base_files, checkpoint_files
from tests.support.loopback_hub import LoopbackHub, cut, held_in_the_middle
from tests.support.patience import PATIENCE

NEVER = 99
"""Times that a fault strikes when it never stops."""

VAE_BYTES = base_files()[VAE]


def bake_vae(folder: Path, hub: Hub) -> None:
    bake(Order(folder, (COMPONENTS["vae"],)), hub, lambda _: None)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.repositories[BASE_REPOSITORY].claimed[VAE] = 10**18
    with pytest.raises(BakeError) as caught:
        bake_vae(folder, hub)
    assert f"{folder} needs 1,000,000,000,000,000,000 bytes (1000000000.0 GB) more and its disk has " in str(
        caught.value
    )
    assert " free; free another " in str(caught.value)
    assert remote.fetched() == []


def test_a_hub_that_drips_is_given_up_though_each_attempt_brings_something(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(VAE, lambda reply: replace(reply, body=reply.body + bytes(1 << 20)), times=NEVER)
    impatient = replace(hub, patience=replace(hub.patience, window=0.0, least=1 << 40))  # no network brings so much

    outcome = bake(Order(folder, (COMPONENTS["vae"],)), impatient, lambda _: None)

    ((sentence,),) = outcome.failures.values()
    assert re.search(r"the hub sent \d+ bytes in 0 s, 3 times in a row; check the network", sentence)


def test_what_is_there_already_needs_no_disk(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.3), cut(0), cut(0), cut(0))
    bake_vae(folder, hub)
    listing = hub.listing(BASE_REPOSITORY, "main", lambda _: None)
    (task,) = tasks(COMPONENTS["vae"], listing, folder, Record(folder, Manifest()), reread=False)
    assert task.missing(folder) == len(VAE_BYTES) - int(0.3 * len(VAE_BYTES))


def test_a_stop_also_ends_the_reading_of_what_is_there_already(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    listing = hub.listing(BASE_REPOSITORY, "main", lambda _: None)
    (file,) = (file for file in listing.files if file.path == VAE)
    target = folder / VAE
    target.parent.mkdir(parents=True)
    partial_path(target, file).write_bytes(VAE_BYTES[:1000])
    hub.stop.set()
    counted: list[int] = []
    with pytest.raises(StoppedError):
        fetch(hub, listing, file, target, counted.append, lambda _: None)
    assert (counted, remote.fetched()) == ([], [])
    assert partial_path(target, file).read_bytes() == VAE_BYTES[:1000]


def test_a_disk_that_fills_in_the_middle_is_told_in_one_sentence(folder: Path, remote: LoopbackHub) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY)); "
    program = f"{limited}from builder.__main__ import main; sys.exit(main())"
    arguments = ["bake", "--models", str(folder), "--components", "configs,vae"]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": remote.url},
        check=False,
    )
    assert run.returncode == 1
    *_, error, summary = run.stderr.splitlines()
    assert error == (
        f"error: {folder / BASE_FOLDER / VAE} cannot be written: the disk is full (File too large); "
        "free some space and run the same command again"
    )
    assert summary == "failed: vae; whole: configs"
    assert "Traceback" not in run.stderr


def test_a_place_that_is_no_folder_is_told_in_one_sentence(tmp_path: Path, hub: Hub) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(BakeError, match="cannot be written: File exists; check the folder's owner and permissions"):
        bake_vae(tmp_path / "models", hub)


def start(folder: Path, remote: LoopbackHub, **environ: str) -> "subprocess.Popen[str]":
    """A whole bake in a process of its own."""
    # A test run in the background of a shell ignores Ctrl-C, and its children would too.
    listening = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = f"{listening}from builder.__main__ import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, "bake", "--models", str(folder)],
        env={**os.environ, "HF_ENDPOINT": remote.url, "HF_HUB_DOWNLOAD_TIMEOUT": f"{PATIENCE:g}", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_nothing_partial_passes_for_whole(folder: Path) -> None:
    truth = {f"{BASE_FOLDER}/{path}": data for path, data in base_files().items()}
    truth |= {f"{CHECKPOINT_FOLDER}/{path}": data for path, data in checkpoint_files().items()}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in truth:
            assert path.read_bytes() == truth[name]
    for entry in (Manifest.read(folder) or Manifest()).files:
        assert (folder / entry.path).read_bytes() == truth[entry.path]


def test_a_bake_killed_at_any_moment_is_finished_by_the_same_command(folder: Path, remote: LoopbackHub) -> None:
    moments = random.Random(20)
    for _ in range(10):
        remote.stop_after(moments.randrange(12))
        process = start(folder, remote)
        remote.held_up()
        process.kill()
        process.communicate()
        remote.go_on()
        assert process.returncode == -signal.SIGKILL
        assert_nothing_partial_passes_for_whole(folder)
    process = start(folder, remote)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    report = verify(folder, every_byte=True)
    assert report.ok
    assert not report.notes


def test_an_interrupt_ends_a_bake_in_one_sentence(folder: Path, remote: LoopbackHub) -> None:
    gate = threading.Event()
    remote.fault(LIGHTNING, held_in_the_middle(gate), times=NEVER)
    process = start(folder, remote, HF_HUB_DOWNLOAD_TIMEOUT="1")  # which ends the wait for a hub that says nothing
    remote.asked_for(LIGHTNING)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    gate.set()
    assert process.returncode == 130
    assert not (folder / CHECKPOINT_FOLDER / LIGHTNING).exists()
    assert errors.splitlines()[-1] == "stopped; the same command goes on where this one was"
    assert "Traceback" not in errors
