import base64
import io
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qwen_edit import Editor, EditRequest, EditResponse
from qwen_edit.edit.bucket import Bucket
from qwen_edit.edit.hooks import Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.edit.prepare import prepare
from qwen_edit.edit.receipt import describe
from qwen_edit.errors import Cancelled, InvalidRequest, ModelUnavailable, OutOfMemory
from qwen_edit.model.render import IN_TILES, ONE_AT_A_TIME
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import BASE_FOLDER, CHECKPOINTS, LIGHTNING, ORIGINAL
from qwen_edit.store.manifest import Manifest
from qwen_edit.weights import header
from tests.support.object_store import download, object_store
from tests.support.stock import stock_pipeline

Ask = Callable[..., EditRequest]


@pytest.fixture(scope="module")
def ask(photo_base64: str) -> Ask:
    """A request for the smallest picture there is."""

    def build(**fields: object) -> EditRequest:
        given = {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256}
        return EditRequest.parse({**given, **fields})

    return build


@pytest.fixture(scope="module")
def response(shared_editor: Editor, ask: Ask) -> EditResponse:
    return shared_editor.edit(ask(seed=7))


def pixels(image: str | None) -> np.ndarray:
    assert image is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))), dtype=int)


def test_the_reply_says_exactly_what_made_the_picture(response: EditResponse, models: Path) -> None:
    manifest = Manifest.read(models)
    assert manifest is not None
    entry = manifest.entry(LIGHTNING.path)
    assert entry is not None
    info = response.model_info

    assert info.checkpoint == "svdq-int4_r128-qwen-image-edit-lightningv1.0-8steps.safetensors"
    assert (info.sha256, info.revision) == (entry.sha256, "random")
    assert (info.repository, info.base_model) == ("tiny", "tiny")
    assert (info.rank, info.steps, info.true_cfg_scale) == (128, 8, 1.0)
    assert (info.precision, info.backend, info.device, info.dtype) == ("int4", "dense", "cpu", "float32")
    assert info.scheduler["name"] == "FlowMatchEulerDiscreteScheduler"
    assert info.scheduler["base_shift"] == info.scheduler["max_shift"] == pytest.approx(np.log(3))
    assert info.scheduler["shift_terminal"] is None
    assert (response.seed, response.width, response.height, response.format) == (7, 256, 256, "png")
    assert response.warnings == []
    assert pixels(response.image).shape == (256, 256, 3)


def test_the_reply_repeats_the_warnings_of_the_request(editor: Editor, photo_base64: str) -> None:
    fields = {"image_url": photo_base64, "prompt": "make it snow", "size": "256*256"}
    request = EditRequest.parse({**fields, "rank": 64, "go_fast": True, "guidance_scale": 4})

    response = editor.edit(request)

    assert [warning.split()[0] for warning in response.warnings] == ["go_fast", "guidance_scale", "rank"]
    assert response.warnings[:2] == list(request.warnings)


def test_a_file_is_edited_as_its_base64_is(editor: Editor, photo_base64: str, response: EditResponse) -> None:
    photo = base64.b64decode(photo_base64)
    request = EditRequest(image=photo, prompt="make it snow", width=256, height=256, seed=7)

    assert editor.edit(request).image == response.image


def sources(manifest: Manifest | None, editor: Editor) -> tuple[str | None, ...]:
    info = describe(Plan(LIGHTNING, 8, 1.0, None, 7, 256, 256, 1), editor.pipeline.describe(), manifest, CHECKPOINTS)
    return info.base_model, info.repository, info.revision, info.sha256


def test_the_reply_names_the_sources_that_the_manifest_names_and_guesses_none(editor: Editor, models: Path) -> None:
    whole = Manifest.read(models)
    assert whole is not None
    files = [replace(entry, repository="fork" if entry.path == LIGHTNING.path else "base") for entry in whole.files]
    mixed = [replace(entry, repository=f"of {entry.path}") for entry in whole.files]

    assert sources(None, editor) == (None, None, None, None)
    assert sources(Manifest(), editor) == (None, None, None, None)
    assert sources(Manifest(tuple(files)), editor)[:2] == ("base", "fork")
    assert sources(Manifest(tuple(mixed)), editor)[:2] == (None, f"of {LIGHTNING.path}")


def test_every_stage_is_timed_and_the_total_is_their_sum(response: EditResponse) -> None:
    timings = response.timings.model_dump()
    total = timings.pop("total")
    del timings["cold"], timings["start"]

    assert all(ms > 0 for name, ms in timings.items() if name not in ("queue", "load"))
    assert total == pytest.approx(sum(timings.values()), abs=1)


def test_the_first_reply_of_a_process_tells_how_it_started(models: Path, ask: Ask) -> None:
    editor = Editor.load(Settings(models=models, device="cpu"))
    steps: list[Step] = []

    with pytest.raises(Cancelled):
        editor.edit(ask(), Hooks(steps.append, lambda: bool(steps)))
    start = editor.start

    assert start is not None
    files = [path for path in models.rglob("*.safetensors") if path.name != ORIGINAL.file]
    unused = [
        entry.bytes
        for path in files
        for name, entry in header.read(path).tensors.items()
        if name.startswith("lm_head.") or name.endswith(".smooth_factor_orig")
    ]
    assert start.read_bytes == sum(path.stat().st_size for path in files) - sum(unused)
    assert start.total >= max(start.imports, start.read)
    assert start.assemble > 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    editor: Editor, ask: Ask, response: EditResponse
) -> None:
    same = editor.edit(ask(seed=7))
    other = editor.edit(ask(seed=8))

    assert same.image == response.image
    assert other.image != response.image
    assert not same.timings.cold


def test_the_picture_is_the_stock_pipelines(editor: Editor, ask: Ask, response: EditResponse) -> None:
    stock = stock_pipeline(editor.pipeline, editor.pipeline.transformer)

    (picture,) = stock(
        image=prepare(ask(), editor.settings).picture,
        prompt="make it snow",
        true_cfg_scale=1.0,
        width=256,
        height=256,
        num_inference_steps=8,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images

    assert np.abs(np.asarray(picture, dtype=int) - pixels(response.image)).max() <= 1


def parts(editor: Editor) -> dict[str, object]:
    pipeline = editor.pipeline
    names = ("prompts", "vae", "transformer", "scheduler", "modulations")
    return {name: getattr(pipeline, name) for name in names}


def test_the_other_checkpoint_takes_the_place_of_the_first_and_gives_it_back(editor: Editor, ask: Ask) -> None:
    first = editor.edit(ask(seed=7, output_format="png"))
    before = parts(editor)
    places = {name: tensor.data_ptr() for name, tensor in editor.pipeline.transformer.state_dict().items()}
    steps: list[tuple[int, int]] = []

    edited = editor.edit(ask(seed=7, steps=20), Hooks(lambda step: steps.append((step.number, step.steps))))

    after = parts(editor)
    assert {name for name in before if before[name] is not after[name]} == {"scheduler"}
    assert {name: tensor.data_ptr() for name, tensor in editor.pipeline.transformer.state_dict().items()} == places
    assert editor.edit(ask(seed=7, output_format="png")).image == first.image
    assert edited.model_info.checkpoint == ORIGINAL.file
    assert (edited.model_info.steps, edited.model_info.true_cfg_scale) == (20, 4.0)
    assert edited.model_info.scheduler["shift_terminal"] == 0.02
    assert edited.timings.load > 0
    assert steps == [(step, 20) for step in range(1, 21)]


def test_several_images_are_drawn_from_following_seeds(editor: Editor, ask: Ask) -> None:
    both = editor.edit(ask(seed=7, num_images=2, output_format="webp"))
    alone = editor.edit(ask(seed=8, output_format="png"))

    first, second = both.images or []
    assert both.image == first != second
    difference = np.abs(pixels(second) - pixels(alone.image)).mean()
    assert difference < np.abs(pixels(first) - pixels(alone.image)).mean()


def test_an_edit_from_python_has_no_limit_and_takes_the_bucket(
    editor: Editor, ask: Ask, response: EditResponse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="return is 'url', but this worker has no bucket"):
        editor.edit(ask(return_as="url"))
    with object_store() as store:
        monkeypatch.setattr(editor, "settings", replace(editor.settings, bucket=store.settings))
        monkeypatch.setattr(editor, "bucket", Bucket(store.settings))

        edited = editor.edit(ask(seed=7, return_as="url"))

        assert edited.image is None
        assert download(edited.url or "") == (base64.b64decode(response.image or ""), "image/png")


def test_the_flag_stops_an_edit_before_the_next_step(editor: Editor, ask: Ask) -> None:
    flag = threading.Event()
    steps: list[int] = []

    def on_step(step: Step) -> None:
        steps.append(step.number)
        if step.number == 2:
            flag.set()

    with pytest.raises(Cancelled, match="cancelled: "):
        editor.edit(ask(), Hooks(on_step, flag.is_set))

    assert steps == [1, 2]


def test_a_prompt_that_leaves_no_room_for_the_picture_is_refused_with_the_count(editor: Editor, ask: Ask) -> None:
    with pytest.raises(
        InvalidRequest, match=r"prompt is too long: with this picture it makes \d+ tokens, of which \d+ fit"
    ):
        editor.edit(ask(prompt="雪" * 1500))


def test_the_longest_prompt_that_fits_is_edited(editor: Editor, ask: Ask) -> None:
    with pytest.raises(InvalidRequest) as refused:
        editor.edit(ask(prompt="x" * 4000))
    words = str(refused.value).split()
    excess = int(words[words.index("tokens,") - 1]) - int(words[words.index("which") + 1])
    steps: list[int] = []

    def stop_after_one(step: Step) -> None:
        steps.append(step.number)

    with pytest.raises(Cancelled):
        editor.edit(ask(prompt="x" * (4000 - excess)), Hooks(stop_after_one, lambda: len(steps) == 1))

    assert steps == [1]


def test_a_step_offers_a_preview_in_the_shape_of_the_result(editor: Editor, ask: Ask) -> None:
    previews: list[Image.Image] = []

    with pytest.raises(Cancelled):
        editor.edit(
            ask(width=512, height=256),
            Hooks(lambda step: previews.append(step.preview()), lambda: len(previews) == 1),
        )

    assert [(preview.size, preview.mode) for preview in previews] == [((256, 128), "RGB")]


def fail_with_full_memory(editor: Editor, times: int) -> None:
    """Let the transformer run out of memory so many times."""
    left = [times]

    def run_out(*_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    editor.pipeline.transformer.register_forward_pre_hook(run_out)


def test_full_memory_is_met_with_a_second_try_that_saves_memory(editor: Editor, ask: Ask) -> None:
    alone = editor.edit(ask(seed=7))
    fail_with_full_memory(editor, times=1)

    both = editor.edit(ask(seed=7, num_images=2))

    assert len(both.images or []) == 2
    assert both.warnings == [ONE_AT_A_TIME]
    assert np.abs(pixels(both.image) - pixels(alone.image)).mean() < 3  # the same noise; tiles blur their seams
    assert not editor.pipeline.vae.use_tiling


def test_a_decoding_that_does_not_fit_is_done_in_tiles_with_the_latents_that_are_there(
    editor: Editor, ask: Ask, response: EditResponse
) -> None:
    passes: list[object] = []
    full = [True]

    def run_out(*_: object) -> None:
        if full:
            full.clear()
            raise torch.OutOfMemoryError("CUDA out of memory")

    editor.pipeline.vae.decoder.register_forward_pre_hook(run_out)
    editor.pipeline.transformer.register_forward_pre_hook(lambda *_: passes.append(None))
    steps: list[int] = []

    tiled = editor.edit(ask(seed=7), Hooks(lambda step: steps.append(step.number)))

    assert len(passes) == 8
    assert steps == list(range(1, 9))
    assert tiled.warnings == [IN_TILES]
    assert np.abs(pixels(tiled.image) - pixels(response.image)).mean() < 3
    assert not editor.pipeline.vae.use_tiling


def test_memory_that_stays_full_is_said_and_the_next_edit_runs(editor: Editor, ask: Ask) -> None:
    fail_with_full_memory(editor, times=2)
    with pytest.raises(OutOfMemory, match="256 × 256 pixels do not fit"):
        editor.edit(ask())

    with pytest.raises(Cancelled):
        editor.edit(ask(), Hooks(is_cancelled=lambda: True))


def test_warming_up_does_not_count_as_an_edit(models: Path, ask: Ask) -> None:
    editor = Editor.load(Settings(models=models, device="cpu"))

    editor.warm_up()

    timings = editor.edit(ask()).timings
    assert timings.cold
    assert timings.start is not None
    assert not editor.is_broken()


def test_a_warm_up_does_two_steps_of_the_usual_schedule_and_leaves_its_table_for_the_first_job(
    editor: Editor, ask: Ask
) -> None:
    modulations = editor.pipeline.modulations
    assert modulations is not None
    modulations.forget()
    passes: list[object] = []
    editor.pipeline.transformer.register_forward_pre_hook(lambda *_: passes.append(None))

    editor.warm_up()

    assert (len(passes), modulations.schedules) == (2, 1)
    embedded: list[object] = []
    editor.pipeline.transformer.time_text_embed.register_forward_hook(lambda *_: embedded.append(None))
    stepped: list[Step] = []
    with pytest.raises(Cancelled):
        editor.edit(ask(), Hooks(stepped.append, lambda: bool(stepped)))
    assert len(embedded) == 2  # by the two passes, and none for a table


def test_a_warm_up_that_does_not_fit_saves_memory_as_an_edit_does(editor: Editor) -> None:
    fail_with_full_memory(editor, times=1)

    editor.warm_up()


@pytest.mark.parametrize(
    "missing", ["vae/config.json", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"]
)
def test_a_base_model_with_a_hole_names_the_file(models: Path, tmp_path: Path, missing: str) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    (copy / BASE_FOLDER / missing).unlink()

    with pytest.raises(ModelUnavailable, match=missing):
        Editor.load(Settings(models=copy, device="cpu"))


def test_a_configuration_that_is_no_json_names_the_part(models: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    (copy / BASE_FOLDER / "text_encoder" / "config.json").write_text("{")

    with pytest.raises(ModelUnavailable, match="text_encoder"):
        Editor.load(Settings(models=copy, device="cpu"))


def test_after_a_checkpoint_failed_to_load_the_other_one_still_edits(models: Path, tmp_path: Path, ask: Ask) -> None:
    copy = Path(shutil.copytree(models, tmp_path / "models"))
    (copy / ORIGINAL.path).write_bytes(b"damaged")
    editor = Editor.load(Settings(models=copy, device="cpu"))

    with pytest.raises(ModelUnavailable, match=ORIGINAL.file):
        editor.edit(ask(steps=20))
    with pytest.raises(Cancelled):
        editor.edit(ask(), Hooks(is_cancelled=lambda: True))


@pytest.mark.parametrize(
    ("allowed", "sentence"), [(False, "QWEN_EDIT_ALLOW_URLS is off"), (True, "public")], ids=["off", "on"]
)
def test_a_url_is_fetched_only_where_it_is_allowed_and_public(
    models: Path, ask: Ask, allowed: bool, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        prepare(ask(image="https://127.0.0.1/cat.png"), Settings(models=models, allow_urls=allowed))


def test_an_empty_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="MODEL_CACHE_DIR"):
        Editor.load(Settings(models=tmp_path))


def test_a_load_can_be_cancelled(models: Path) -> None:
    with pytest.raises(Cancelled):
        Editor.load(Settings(models=models), is_cancelled=lambda: True)


def test_a_load_is_cancelled_while_it_reads(models: Path) -> None:
    def while_reading() -> bool:
        return threading.current_thread().name.startswith("weights")

    with pytest.raises(Cancelled):
        Editor.load(Settings(models=models, device="cpu"), is_cancelled=while_reading)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("weights", "expand"))]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"device": "cuda"}, "QWEN_EDIT_DEVICE is cuda"),
        ({"backend": "nunchaku"}, "QWEN_EDIT_BACKEND is nunchaku"),
        ({"offload": "model"}, "QWEN_EDIT_OFFLOAD is model"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_and_never_replaced(
    models: Path, settings: dict[str, Any], sentence: str
) -> None:
    if settings == {"device": "cuda"} and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(ModelUnavailable, match=sentence):
        Editor.load(Settings(models=models, **settings))


def test_a_change_that_is_cancelled_half_way_is_given_up_and_costs_no_later_picture(models: Path, ask: Ask) -> None:
    editor = Editor.load(Settings(models=models, device="cpu"))
    before = editor.edit(ask(seed=7))
    asked = iter([False, False])  # at the begin, and before the first read

    with pytest.raises(Cancelled):
        editor.change_to(ORIGINAL, lambda: next(asked, True))

    assert next(asked, None) is None
    assert editor.edit(ask(seed=7)).image == before.image


def test_a_change_that_fails_half_way_costs_neither_the_worker_nor_the_next_picture(
    models: Path, tmp_path: Path, ask: Ask
) -> None:
    damaged = Path(shutil.copytree(models, tmp_path / "models"))
    path = damaged / ORIGINAL.path
    entry = header.read(path).tensors["transformer_blocks.0.txt_mlp.net.2.smooth_factor"]
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(bytes(entry.bytes))
    editor = Editor.load(Settings(models=damaged, device="cpu"))
    before = editor.edit(ask(seed=7))

    with pytest.raises(ModelUnavailable, match="holds a zero, expected divisors"):
        editor.edit(ask(seed=7, steps=20))

    assert editor.edit(ask(seed=7)).image == before.image
