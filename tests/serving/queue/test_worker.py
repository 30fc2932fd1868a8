import asyncio
import base64
import io
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qwen_edit.edit.fitting import Encoded
from qwen_edit.editor import Editor
from qwen_edit.serving.queue.worker import Worker
from qwen_edit.serving.saving import save
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings
from tests.support.object_store import download, object_store
from tests.support.patience import PATIENCE
from tests.support.places import ROOT


def ask(worker: Worker, payload: object) -> dict[str, Any]:
    return asyncio.run(worker.handle({"id": "job-1", "input": payload}))


@pytest.fixture
def worker(models: Path, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(Service(Settings(models=models, device="cpu", save_dir=tmp_path / "saved")))
    yield worker
    worker.service.close()


@pytest.fixture
def good(photo_base64: str) -> dict[str, Any]:
    return {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256, "seed": 5}


def test_a_job_is_answered_with_the_contracts_response(
    worker: Worker, good: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    reply = ask(worker, {**good, "rank": 64, "steps": 4})
    worker.service.close()  # which waits for what is being saved

    assert json.loads(json.dumps(reply)) == reply
    assert reply["model_config"]["rank"] == 128
    assert reply["model_config"]["steps"] == 8
    assert len(reply["warnings"]) == 2
    assert "64" in " ".join(reply["warnings"])
    assert reply["seed"] == 5
    assert reply["timings"]["cold"] is True
    assert reply["timings"]["queue"] > 0  # it waited for the load

    (saved,) = (worker.settings.save_dir or Path()).iterdir()
    assert saved.name == "job-1-5-0.png"
    assert saved.read_bytes() == base64.b64decode(reply["image"])
    with Image.open(saved) as picture:
        assert picture.size == (256, 256)

    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["loaded", "edited"]
    assert events[1]["saved"] == [str(saved)]
    assert "make it snow" not in json.dumps(events)
    assert max(len(json.dumps(event)) for event in events) < 5000


@pytest.mark.parametrize(("route", "body"), [("openai_route", "openai_input"), ("route", "body")])
def test_an_edit_in_openais_words_is_answered_in_openais_words(
    worker: Worker, photo_base64: str, route: str, body: str
) -> None:
    fields = {"images": [{"image_url": f"data:image/jpeg;base64,{photo_base64}"}], "prompt": "make it snow"}
    more = {"model": "gpt-image-1", "n": 2, "size": "256x256", "quality": "high", "stream": True, "seed": 5}

    reply = ask(worker, {route: "/v1/images/edits", body: {**fields, **more}})
    worker.service.close()  # which waits for what is being saved

    assert json.loads(json.dumps(reply)) == reply
    saved = [(worker.settings.save_dir or Path()) / f"job-1-5-{number}.png" for number in range(2)]
    assert [base64.b64decode(one["b64_json"]) for one in reply["data"]] == [path.read_bytes() for path in saved]
    assert (reply["size"], reply["output_format"], reply["seed"]) == ("256x256", "png", 5)
    assert [warning.split()[0] for warning in reply["warnings"]] == ["quality", "stream"]
    assert reply["model_config"]["steps"] == 8
    assert "image" not in reply


def bomb() -> str:
    """63 megapixels in 8 kB."""
    file = io.BytesIO()
    Image.new("1", (9000, 7000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


WRONG: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("rank 7", lambda good: {**good, "rank": 7}, "invalid_request: rank is 7"),
    ("steps 0", lambda good: {**good, "steps": 0}, "invalid_request: steps is 0"),
    ("steps true", lambda good: {**good, "steps": True}, "invalid_request: steps is "),
    ("steps as text", lambda good: {**good, "steps": "8"}, "invalid_request: steps is "),
    ("broken base64", lambda good: {**good, "image": "iVBOR%%%%"}, "invalid_image: "),
    ("a text file", lambda good: {**good, "image": base64.b64encode(b"Dear Sir,\n" * 9).decode()}, "invalid_image: "),
    ("a bomb", lambda good: {**good, "image": bomb()}, "image_too_large: "),
    ("an empty prompt", lambda good: {**good, "prompt": "  "}, "invalid_request: prompt is "),
    (
        "an unknown field",
        lambda good: {**good, "promt": "x"},
        "invalid_request: 'promt' is not a field, the closest is prompt",
    ),
    (
        "a URL without a bucket",
        lambda good: {**good, "return": "url"},
        "invalid_request: return is 'url', but this worker has no bucket",
    ),
    ("no image", lambda good: {"prompt": "x"}, "invalid_request: image is "),
    (
        "a mask in OpenAI's words",
        lambda good: {"openai_route": "/v1/images/edits", "openai_input": {**good, "mask": good["image"]}},
        "invalid_request: mask is a string of ",
    ),
    ("another route", lambda good: {"route": "/v1/models", "body": good}, "invalid_request: route is '/v1/models', "),
    ("no object", lambda good: ["x"], "invalid_request: input is "),
    ("nothing", lambda good: None, "invalid_request: input is "),
]


@pytest.mark.parametrize(("build", "sentence"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_wrong_input_gets_one_sentence_and_no_model_is_loaded_for_it(
    good: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    build: Callable[[dict[str, Any]], object],
    sentence: str,
) -> None:
    # There are no weights here: an answer about the input shows that nothing waited for them.
    worker = Worker(Service(Settings(models=tmp_path / "nowhere")))

    reply = ask(worker, build(good))

    assert reply.keys() == {"error"}
    assert reply["error"].startswith(sentence)
    assert "\n" not in reply["error"]
    assert str(tmp_path) not in reply["error"]
    worker.service.close()
    assert '"event": "not loaded"' not in capsys.readouterr().out


def test_a_missing_model_directory_is_said_without_its_path(good: dict[str, Any], tmp_path: Path) -> None:
    worker = Worker(Service(Settings(models=tmp_path / "nowhere")))

    reply = ask(worker, good)

    assert reply["error"].startswith("model_unavailable: ")
    assert "MODEL_CACHE_DIR" in reply["error"]
    assert str(tmp_path) not in reply["error"]


def test_a_load_that_failed_answers_every_job_with_its_sentence(
    good: dict[str, Any], tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = next(path for path in models.iterdir() if path.name.startswith("nunchaku"))
    (tmp_path / checkpoints.name).symlink_to(checkpoints)  # checkpoints, but no base model
    worker = Worker(Service(Settings(models=tmp_path)))
    worker.load()

    first, second = ask(worker, good), ask(worker, good)

    worker.service.close()
    assert first == second
    assert first["error"].startswith("model_unavailable: the base model has no ")
    assert '"event": "not loaded"' in capsys.readouterr().out


def test_what_nobody_foresaw_is_logged_whole_and_told_in_a_sentence(
    worker: Worker, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> Editor:
        raise ZeroDivisionError("secret /path")

    monkeypatch.setattr(Editor, "load", explode)

    reply = ask(worker, good)

    assert reply == {"error": "internal: the edit failed; the worker's log has the details under job job-1"}
    failed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert failed["event"] == "failed"
    assert "ZeroDivisionError: secret /path" in failed["traceback"]


def test_a_cancelled_job_leaves_the_device_thread_and_the_next_one_is_answered(
    worker: Worker, good: dict[str, Any]
) -> None:
    passes: list[object] = []
    cancelled = threading.Event()

    async def cancel_one_then_ask() -> dict[str, Any]:
        editor = await asyncio.wrap_future(worker.service.load())
        stepping = asyncio.Event()
        loop = asyncio.get_running_loop()

        def begun(*_: object) -> None:
            passes.append(None)
            loop.call_soon_threadsafe(stepping.set)
            cancelled.wait(PATIENCE)

        editor.pipeline.transformer.register_forward_pre_hook(begun)
        first = asyncio.ensure_future(worker.handle({"id": "first", "input": good}))
        await stepping.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        cancelled.set()
        return await worker.handle({"id": "second", "input": good})

    reply = asyncio.run(cancel_one_then_ask())
    worker.service.close()  # which waits for what is being saved

    assert "image" in reply
    assert len(passes) == 1 + 8
    assert [path.name for path in (worker.settings.save_dir or Path()).iterdir()] == ["second-5-0.png"]


def test_a_reply_that_does_not_fit_changes_as_the_request_allows_or_is_refused(
    models: Path, tmp_path: Path, good: dict[str, Any]
) -> None:
    worker = Worker(Service(Settings(models=models, device="cpu", save_dir=tmp_path, max_payload_mb=1)))
    large = {**good, "width": 512, "height": 512}

    refused = ask(worker, large)
    reply = ask(worker, {**large, "output_format": "auto"})

    worker.service.close()
    assert refused["error"].startswith("output_too_large: the reply has ")
    assert "expected at most 1,000,000: ask for output_format 'auto'" in refused["error"]
    assert len(json.dumps({"output": reply}, ensure_ascii=False).encode()) <= 1_000_000
    assert reply["format"] == "webp"
    assert reply["warnings"][0].startswith("the result is a WebP of quality 95, because as PNG it did not fit")
    (saved,) = tmp_path.iterdir()
    assert saved.name == "job-1-5-0.webp"
    assert saved.read_bytes() == base64.b64decode(reply["image"])


def test_a_url_leads_to_the_file_that_is_also_saved(models: Path, tmp_path: Path, good: dict[str, Any]) -> None:
    with object_store() as store:
        worker = Worker(Service(Settings(models=models, device="cpu", save_dir=tmp_path, bucket=store.settings)))

        reply = ask(worker, {**good, "return": "url"})

        worker.service.close()
        assert json.loads(json.dumps(reply)) == reply
        assert reply.keys() & {"image", "images", "url", "urls"} == {"url", "urls"}
        assert reply["urls"] == [reply["url"]]
        assert "/qwen-edit/job-1-" in reply["url"]
        assert download(reply["url"]) == ((tmp_path / "job-1-5-0.png").read_bytes(), "image/png")


def test_an_edit_that_cannot_be_saved_is_answered_all_the_same(
    models: Path, good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    worker = Worker(Service(Settings(models=models, device="cpu", save_dir=tmp_path / "file" / "below")))

    reply = ask(worker, good)

    worker.service.close()
    assert "image" in reply
    assert '"event": "not saved"' in capsys.readouterr().out


def test_a_job_id_cannot_choose_the_folder(tmp_path: Path) -> None:
    (path,) = save(tmp_path / "saved", "../../etc/passwd", 5, Encoded("png", (b"picture",)))

    assert Path(path).parent == tmp_path / "saved"
    assert Path(path).read_bytes() == b"picture"


def test_a_worker_of_a_program_is_quiet_about_what_pillow_finds_odd_and_about_nothing_else() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Worker.from_environ()
        for module in ("PIL.TiffImagePlugin", "numpy"):
            warnings.warn_explicit(f"odd in {module}", UserWarning, "file.py", 1, module)

    assert [str(one.message) for one in seen] == ["odd in numpy"]


def test_importing_the_handler_loads_nothing() -> None:
    program = (
        "import sys, handler; print(sorted({'torch', 'runpod', 'builder.bake'} & set(sys.modules)), handler.handler)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("[] <bound method Worker.handle of ")
