from pathlib import Path

from qwen_edit.catalog import BASE_REPOSITORY, LIGHTNING, ORIGINAL
from qwen_edit.manifest import Manifest
from tests.builder.loopback_hub import LoopbackHub
from tests.e2e.conftest import Run, events, hub_of

LOAD = "from qwen_edit import Editor; print(sorted(Editor.load()._pipeline.components))"


def test_a_worker_that_may_download_fetches_the_preferred_checkpoint_and_loads(
    run: Run, tiny_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "empty"

    with hub_of(tiny_models) as hub:
        done = run("-c", LOAD, MODEL_CACHE_DIR=str(models), QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url)

    assert "'transformer'" in done.stdout, done.stderr
    assert (models / LIGHTNING.path).read_bytes() == (tiny_models / LIGHTNING.path).read_bytes()
    assert not (models / ORIGINAL.path).exists()
    manifest = Manifest.read(models)
    assert manifest is not None
    entry = manifest.entry(LIGHTNING.path)
    assert entry is not None
    assert entry.revision == "b" * 40


def test_a_worker_that_may_not_download_asks_no_hub(run: Run, tmp_path: Path) -> None:
    with LoopbackHub({}) as hub:
        done = run("-c", LOAD, MODEL_CACHE_DIR=str(tmp_path), HF_ENDPOINT=hub.url)

    assert "model_unavailable: there is no checkpoint in MODEL_CACHE_DIR" in done.stderr
    assert not hub.seen


def test_a_whole_directory_is_not_asked_for_again(run: Run) -> None:
    with LoopbackHub({}) as hub:
        done = run("-c", LOAD, QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url)

    assert "'transformer'" in done.stdout, done.stderr
    assert not hub.seen


def test_a_fetch_that_fails_is_told_without_the_hub_and_logged_with_it(run: Run, tmp_path: Path) -> None:
    with LoopbackHub({}) as hub:
        done = run("handler.py", MODEL_CACHE_DIR=str(tmp_path), QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url)

    (not_loaded,) = [event for event in events(done.stdout) if event["event"] == "not loaded"]
    assert not_loaded["error"] == "model_unavailable: the weights could not be fetched; the worker's log says why"
    assert BASE_REPOSITORY in not_loaded["cause"]
