from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.edit.hooks import NO_HOOKS, Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.sampling import denoise
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING, ORIGINAL
from tests.support.edits import render

PLAN = Plan(LIGHTNING, 1, 1.0, None, 7, 256, 256, 1)
GUIDED = replace(PLAN, steps=2, true_cfg_scale=3.0, negative_prompt="grey")


@pytest.fixture
def pipeline(editor: Editor) -> EditPipeline:
    """With nothing kept."""
    editor.pipeline.contents.clear()
    return editor.pipeline


@pytest.fixture
def runs(pipeline: EditPipeline) -> Callable[[], tuple[int, int]]:
    """How often the text encoder and the VAE's encoder have run since this was last asked."""
    calls: list[object] = []

    def taken() -> tuple[int, int]:
        counts = calls.count(pipeline.prompts.text_encoder), calls.count(pipeline.vae.encoder)
        calls.clear()
        return counts

    for encoder in (pipeline.prompts.text_encoder, pipeline.vae.encoder):
        encoder.register_forward_pre_hook(lambda module, _args: calls.append(module))
    return taken


def latents(pipeline: EditPipeline, picture: Image.Image, prompt: str = "snow", plan: Plan = PLAN) -> Tensor:
    return denoise(pipeline, picture, prompt, plan, NO_HOOKS)


def test_a_second_edit_skips_both_encoders_and_gives_the_same_bits(
    pipeline: EditPipeline, runs: Callable[[], tuple[int, int]], photo: Image.Image
) -> None:
    first = render(pipeline, photo, GUIDED)
    assert runs() == (2, 1)

    again = render(pipeline, photo.copy(), GUIDED)

    assert runs() == (0, 0)
    assert np.array_equal(np.asarray(first), np.asarray(again))


def test_another_prompt_asks_the_text_encoder_alone(
    pipeline: EditPipeline, runs: Callable[[], tuple[int, int]], photo: Image.Image
) -> None:
    latents(pipeline, photo)
    runs()

    kept = latents(pipeline, photo, "rain")
    assert runs() == (1, 0)

    pipeline.contents.clear()
    assert torch.equal(kept, latents(pipeline, photo, "rain"))


def test_a_picture_that_differs_in_one_pixel_is_encoded_anew(
    pipeline: EditPipeline, runs: Callable[[], tuple[int, int]], photo: Image.Image
) -> None:
    first = latents(pipeline, photo)
    runs()
    other = photo.copy()
    other.putpixel((7, 7), (255, 0, 255))

    changed = latents(pipeline, other)

    assert runs() == (1, 1)
    assert not torch.equal(first, changed)


def test_what_was_encoded_outlives_a_change_of_the_checkpoint(
    editor: Editor, pipeline: EditPipeline, runs: Callable[[], tuple[int, int]], photo: Image.Image
) -> None:
    latents(pipeline, photo)
    runs()

    editor.change_to(ORIGINAL)
    latents(pipeline, photo, plan=replace(PLAN, checkpoint=ORIGINAL, steps=2))

    assert runs() == (0, 0)


def test_the_latents_of_tiles_are_not_taken_for_those_of_the_whole(
    pipeline: EditPipeline, runs: Callable[[], tuple[int, int]], photo: Image.Image
) -> None:
    latents(pipeline, photo)
    runs()

    pipeline.vae.enable_tiling()
    latents(pipeline, photo)

    of_the_prompt, of_the_picture = runs()
    assert of_the_prompt == 0
    assert of_the_picture > 0


def test_saving_memory_lets_go_of_what_was_kept(pipeline: EditPipeline, photo: Image.Image) -> None:
    render(pipeline, photo, PLAN)
    assert pipeline.contents.bytes > 0
    assert pipeline.modulations is not None
    assert pipeline.modulations.schedules

    with pipeline.saving_memory():
        assert pipeline.contents.bytes == 0
        assert not pipeline.modulations.schedules


def test_a_text_without_padding_brings_no_mask_and_none_is_missed(pipeline: EditPipeline, photo: Image.Image) -> None:
    seen: list[dict[str, Any]] = []

    def note(_module: object, _args: object, inputs: dict[str, Any], output: tuple[Tensor]) -> None:
        seen.append({**inputs, "output": output[0]})

    end = pipeline.transformer.register_forward_hook(note, with_kwargs=True).remove
    render(pipeline, photo, PLAN)
    end()
    (inputs,) = seen
    output = inputs.pop("output")
    assert inputs["encoder_hidden_states_mask"] is None

    ones = torch.ones(inputs["encoder_hidden_states"].shape[:2], dtype=torch.long)
    with torch.inference_mode():
        masked = pipeline.transformer(**{**inputs, "encoder_hidden_states_mask": ones})[0]

    assert torch.allclose(masked, output, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device(models: Path, photo: Image.Image) -> None:
    pipeline = Editor.load(Settings(models=models, device="cuda")).pipeline
    plan = replace(GUIDED, steps=4)
    render(pipeline, photo, plan)  # fills the tables: of the schedule, and of the rotary embedding
    watched: list[int] = []

    def start(*_: object) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_step(step: Step) -> None:
        watched.append(step.number)
        if step.number == plan.steps:
            torch.cuda.set_sync_debug_mode("default")

    pipeline.transformer.register_forward_pre_hook(start)
    try:
        render(pipeline, photo, plan, hooks=Hooks(on_step))
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert watched == [1, 2, 3, 4]
