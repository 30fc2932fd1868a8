import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.made.demo import files
from tests.support.places import ROOT
from tests.support.programs import Run, events


def test_the_handler_edits_test_input_json(run: Run, tmp_path: Path) -> None:
    files.write(tmp_path / "demo")

    done = run("handler.py", MODEL_CACHE_DIR=str(tmp_path / "demo"), RUNPOD_LOG_LEVEL="INFO")

    assert done.returncode == 0, done.stderr
    edited: dict[str, Any] = events(done.stdout)[-1]
    config = edited["reply"]["model_config"]

    assert config["checkpoint"] == "svdq-int4_r128-qwen-image-edit-lightningv1.0-8steps.safetensors"
    assert (config["rank"], config["steps"]) == (128, 8)
    (saved,) = (tmp_path / "saved").iterdir()
    assert edited["saved"] == [str(saved)]
    with Image.open(saved) as picture:
        assert picture.size == (1248, 832)  # the shape of the 451 × 300 photo at about one megapixel
        levels = np.asarray(picture).astype(int)
    assert np.ptp(levels, axis=2).mean() < 8 < levels.std()  # "Convert the photo to black and white"
    assert "'image': 'iVBOR" in done.stdout  # the SDK prints the whole reply at this level
    assert "Local testing complete" in done.stdout


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"image": "aGk=", "prompt": "x", "rank": 7}, "invalid_request: rank is 7"),
        ({"image": "aGk=", "prompt": "x"}, "invalid_image: "),
    ],
)
def test_a_wrong_test_input_fails_the_job_with_a_sentence(run: Run, payload: dict[str, object], sentence: str) -> None:
    done = run("handler.py", "--test_input", json.dumps({"input": payload}))

    assert done.returncode == 1
    assert f"failed with error: {sentence}" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_missing_model_directory_fails_the_job_with_a_sentence(run: Run, tmp_path: Path) -> None:
    done = run("handler.py", MODEL_CACHE_DIR=str(tmp_path / "nowhere"))

    assert done.returncode == 1
    assert "failed with error: model_unavailable: " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_setting_that_cannot_be_read_stops_the_start(run: Run) -> None:
    done = run("handler.py", QWEN_EDIT_CONCURRENCY="many")

    assert done.returncode == 1
    assert done.stderr == "qwen-edit: QWEN_EDIT_CONCURRENCY is 'many', expected a whole number from 1 to 64\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_the_worker_does_not_load_the_model_again(run: Run, tmp_path: Path, method: str) -> None:
    # The SDK's heartbeat is such a child; spawn and forkserver run the main module again in it.
    program = (
        "import multiprocessing, runpy, runpod.serverless\n"
        "def start(config):\n"
        f"    child = multiprocessing.get_context({method!r}).Process(target=int)\n"
        "    child.start(); child.join(); print('child', child.exitcode)\n"
        "if __name__ == '__main__':\n"
        "    runpod.serverless.start = start\n"
        f"{(ROOT / 'handler.py').read_text()}"
    )
    script = tmp_path / "heartbeat.py"
    script.write_text(program)

    done = run(str(script), PYTHONPATH=str(ROOT))

    assert "child 0" in done.stdout, done.stderr
    assert len([event for event in events(done.stdout) if event["event"] in ("loaded", "not loaded")]) <= 1


def test_the_handler_is_glue() -> None:
    assert len((ROOT / "handler.py").read_text().splitlines()) < 40
