import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from builder.bake.errors import BakeError
from builder.bake.hub import Hub
from builder.bake.order import Order, Outcome, bake
from builder.bake.parts import BASE, CHECKPOINT_NAMES, COMPONENTS, select
from builder.bake.progress import Lines, show
from builder.bake.record import exclusive
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from qwen_edit.store.manifest import FILE_NAME, Manifest
from tests.support.baked import (
    BASE_COMMIT,
    CHECKPOINTS_COMMIT,
    LIGHTNING,
    ORIGINAL,
    VAE,
    base_files,
    checkpoint_files,
    wanted,
    weights,
)
from tests.support.loopback_hub import LoopbackHub, cut

EVERYTHING = select((), CHECKPOINT_NAMES)


def quietly(line: str) -> None:
    """Nobody listens."""


def bake_all(folder: Path, hub: Hub) -> Outcome:
    return bake(Order(folder, EVERYTHING), hub, quietly)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != FILE_NAME
    }


def manifest_of(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return manifest


def test_the_loopback_hub_serves_the_stock_client(remote: LoopbackHub, tmp_path: Path) -> None:
    for name in ("model_index.json", VAE):
        path = hf_hub_download(BASE_REPOSITORY, name, local_dir=tmp_path, endpoint=remote.url)
        assert Path(path).read_bytes() == base_files()[name]


def test_a_bake_brings_what_serving_needs_and_nothing_else(folder: Path, hub: Hub) -> None:
    outcome = bake_all(folder, hub)
    base = {f"{BASE_FOLDER}/{path}": data for path, data in wanted(base_files()).items()}
    checkpoints = {f"{CHECKPOINT_FOLDER}/{path}": data for path, data in wanted(checkpoint_files()).items()}
    assert files_of(folder) == base | checkpoints
    assert not outcome.failures
    assert outcome.fetched == outcome.bytes == sum(map(len, (base | checkpoints).values()))
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


def test_the_manifest_lists_every_file_with_its_hash_and_commit(folder: Path, hub: Hub) -> None:
    bake_all(folder, hub)
    entries = manifest_of(folder).files
    assert {entry.path: entry.sha256 for entry in entries} == {
        path: hashlib.sha256(data).hexdigest() for path, data in files_of(folder).items()
    }
    assert {(entry.repository, entry.revision) for entry in entries} == {
        (BASE_REPOSITORY, BASE_COMMIT),
        (CHECKPOINT_REPOSITORY, CHECKPOINTS_COMMIT),
    }


def test_a_bake_passes_verification(folder: Path, hub: Hub) -> None:
    bake_all(folder, hub)
    report = verify(folder, every_byte=True)
    assert report.ok
    assert not report.notes


def test_a_second_bake_fetches_nothing(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    bake_all(folder, hub)
    before = (folder / FILE_NAME).read_bytes()
    remote.heal()
    outcome = bake_all(folder, hub)
    assert remote.fetched() == []
    assert outcome.fetched == 0
    assert (folder / FILE_NAME).read_bytes() == before


def test_components_bake_one_part_at_a_time_into_one_manifest(folder: Path, hub: Hub) -> None:
    seen: set[str] = set()
    for name in (
        "configs",
        "text_encoder-1",
        "text_encoder-2",
        "text_encoder-3",
        "text_encoder-4",
        "vae",
        *CHECKPOINT_NAMES,
    ):
        bake(Order(folder, select((name,), CHECKPOINT_NAMES)), hub, quietly)
        paths = {entry.path for entry in manifest_of(folder).files}
        assert paths > seen
        if name != "configs":
            assert len(paths - seen) == 1
        seen = paths
    assert verify(folder, every_byte=True).ok


def test_a_checkpoint_that_is_not_chosen_is_left_out(folder: Path, hub: Hub) -> None:
    bake(Order(folder, select((), ("lightning",))), hub, quietly)
    assert (folder / CHECKPOINT_FOLDER / LIGHTNING).exists()
    assert not (folder / CHECKPOINT_FOLDER / ORIGINAL).exists()
    assert select(("original",), ("lightning",)) == ()


def test_a_revision_pins_its_repository(folder: Path, hub: Hub) -> None:
    outcome = bake(Order(folder, BASE, {"base": BASE_COMMIT}), hub, quietly)
    assert outcome.commits == {BASE_REPOSITORY: BASE_COMMIT}
    outcome = bake(Order(folder, EVERYTHING, {"base": "v9"}), hub, quietly)
    assert set(outcome.failures) == {"configs", "text_encoder", "vae"}
    assert "Qwen/Qwen-Image-Edit at v9 has no such revision; name a commit" in outcome.failures["vae"][0]


def test_a_new_commit_replaces_what_changed_and_removes_what_is_gone(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    bake_all(folder, hub)
    repository = remote.repositories[BASE_REPOSITORY]
    repository.commit = "c" * 40
    repository.files[VAE] = weights(77, "decoder")
    del repository.files["processor/chat_template.jinja"]
    remote.heal()
    bake_all(folder, hub)
    assert remote.fetched() == [VAE]
    assert (folder / BASE_FOLDER / VAE).read_bytes() == weights(77, "decoder")
    assert not (folder / BASE_FOLDER / "processor/chat_template.jinja").exists()
    assert {e.revision for e in manifest_of(folder).files if e.repository == BASE_REPOSITORY} == {"c" * 40}
    assert verify(folder, every_byte=True).ok


def test_a_whole_file_without_a_manifest_is_read_instead_of_fetched(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    bake_all(folder, hub)
    (folder / FILE_NAME).unlink()
    remote.heal()
    outcome = bake_all(folder, hub)
    assert remote.fetched() == []
    assert outcome.fetched == 0
    assert verify(folder).ok


def test_a_manifest_that_cannot_be_read_is_made_anew(folder: Path, hub: Hub) -> None:
    bake_all(folder, hub)
    before = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(before[:100])
    said: list[str] = []
    bake(Order(folder, EVERYTHING), hub, said.append)
    assert (folder / FILE_NAME).read_text() == before
    assert "manifest.json is not a manifest" in said[0]


def test_a_changed_byte_is_trusted_unless_every_byte_is_read(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    bake_all(folder, hub)
    file = folder / BASE_FOLDER / VAE
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    remote.heal()
    bake_all(folder, hub)
    assert remote.fetched() == []
    bake(replace(Order(folder, EVERYTHING), reread=True), hub, quietly)
    assert remote.fetched() == [VAE]
    assert file.read_bytes() == good


def test_a_link_in_the_place_of_a_file_becomes_the_file(folder: Path, hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_bytes(base_files()[VAE])
    (folder / BASE_FOLDER / "vae").mkdir(parents=True)
    (folder / BASE_FOLDER / VAE).symlink_to(target)
    bake_all(folder, hub)
    assert not (folder / BASE_FOLDER / VAE).is_symlink()
    assert target.exists()


def test_the_token_goes_to_the_hub_and_not_to_the_host_of_the_files(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    bake(Order(folder, (COMPONENTS["vae"],)), replace(hub, token="hf_secret"), quietly)
    tokens = {seen.host: seen.token for seen in remote.seen}
    assert tokens == {"127.0.0.1": "Bearer hf_secret", "localhost": None}


def test_two_bakes_of_one_directory_are_not_run_at_once(folder: Path, hub: Hub) -> None:
    folder.mkdir()
    with (
        exclusive(folder),
        pytest.raises(BakeError, match=r"another process is writing to .*; wait for its end, or stop it"),
    ):
        bake_all(folder, hub)
    assert not bake_all(folder, hub).failures


def test_a_log_shows_speed_and_time_left_in_plain_lines() -> None:
    stream = io.StringIO()
    with Lines("bake", 4_000_000, stream, every=0.0) as lines:
        lines.advance(1_000_000)
        lines.say("fetched vae")
    progress, said = stream.getvalue().splitlines()
    assert progress.startswith("bake: 1.0 MB of 4.0 MB (25%), ")
    assert progress.endswith(" s left")
    assert said == "fetched vae"


def test_a_resumed_bake_on_a_terminal_shows_a_bar(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    remote.fault(VAE, cut(0.3))
    bake(Order(folder, (COMPONENTS["vae"],)), hub, quietly, lambda what, total: show(what, total, stream))
    assert "100%" in stream.getvalue()
    assert "B/s" in stream.getvalue()
    assert json.loads((folder / FILE_NAME).read_text())["files"]
