from pathlib import Path

from qwen_edit.store.catalog import BASE_REPOSITORY, LIGHTNING, ORIGINAL
from qwen_edit.store.manifest import Manifest
from tests.support.loopback_hub import LoopbackHub
from tests.support.programs import Run, events, hub_of

LOAD = "from builder.missing import fetch_missing; from qwen_edit import Editor; Editor.load(fetch=fetch_missing)"
LOAD_ALONE = "from qwen_edit import Editor; Editor.load()"


def test_a_worker_that_may_download_fetches_the_preferred_checkpoint_and_loads(
    run: Run, tiny_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "empty"

    with hub_of(tiny_models) as hub:
        done = run("-c", LOAD, MODEL_CACHE_DIR=str(models), QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url)

    assert done.returncode == 0, done.stderr
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

    assert done.returncode == 0, done.stderr
    assert not hub.seen


def test_a_fetch_that_fails_is_told_without_the_hub_and_logged_with_it(run: Run, tmp_path: Path) -> None:
    with LoopbackHub({}) as hub:
        done = run("handler.py", MODEL_CACHE_DIR=str(tmp_path), QWEN_EDIT_ALLOW_DOWNLOAD="1", HF_ENDPOINT=hub.url)

    (not_loaded,) = [event for event in events(done.stdout) if event["event"] == "not loaded"]
    assert not_loaded["error"] == "model_unavailable: the weights could not be fetched; the worker's log says why"
    assert BASE_REPOSITORY in not_loaded["cause"]


def test_an_editor_that_may_download_and_was_given_no_way_to_says_so(run: Run, tmp_path: Path) -> None:
    done = run("-c", LOAD_ALONE, MODEL_CACHE_DIR=str(tmp_path), QWEN_EDIT_ALLOW_DOWNLOAD="1")

    assert "model_unavailable: weights are missing in MODEL_CACHE_DIR, and QWEN_EDIT_ALLOW_DOWNLOAD is 1" in done.stderr
    assert run("-c", LOAD_ALONE, QWEN_EDIT_ALLOW_DOWNLOAD="1").returncode == 0
