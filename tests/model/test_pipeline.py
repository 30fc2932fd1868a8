from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageTransformer2DModel
from PIL import Image

from qwen_edit import Editor
from qwen_edit.edit.hooks import Step
from qwen_edit.edit.plan import Plan
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.svdq import dense_state_dict

PLAN = Plan(LIGHTNING, 1, 1.0, None, 7, 256, 256, 1)
GUIDED = replace(PLAN, steps=2, true_cfg_scale=3.0, negative_prompt="grey")


@pytest.fixture
def pipeline(editor: Editor) -> EditPipeline:
    """On the lightning checkpoint, with nothing kept."""
    editor._change_to(LIGHTNING)
    editor._pipeline.contents.clear()
    return editor._pipeline


def ignore(_step: Step) -> None:
    pass


def never() -> bool:
    return False


def render(pipeline: EditPipeline, picture: Image.Image, prompt: str, plan: Plan = PLAN) -> np.ndarray:
    (rendered,) = pipeline.render(picture, prompt, plan, ignore, never)
    return np.asarray(rendered)


def test_a_second_edit_skips_both_encoders_and_gives_the_same_bits(pipeline, photo) -> None:
    first = render(pipeline, photo, "snow", GUIDED)
    calls: list[object] = []
    ends = [
        encoder.register_forward_hook(lambda module, *_: calls.append(module)).remove
        for encoder in (pipeline.text_encoder, pipeline.vae.encoder)
    ]

    again = render(pipeline, photo.copy(), "snow", GUIDED)

    for end in ends:
        end()
    assert calls == []
    assert np.array_equal(first, again)
    assert pipeline.reference is None  # what a preview needs is let go of


def test_saving_memory_lets_go_of_what_was_kept(pipeline, photo) -> None:
    render(pipeline, photo, "snow")
    assert pipeline.contents.bytes > 0
    assert pipeline.modulations._tables

    with pipeline.saving_memory():
        assert pipeline.contents.bytes == 0
        assert not pipeline.modulations._tables


def test_a_stock_pipeline_with_the_stock_layers_gives_the_same_picture(pipeline, models: Path, photo) -> None:
    stock = QwenImageTransformer2DModel.from_config(pipeline.transformer.config).eval()
    stock.load_state_dict(dense_state_dict(models / LIGHTNING.path, torch.float32))
    theirs = QwenImageEditPipeline(**{**pipeline.components, "transformer": stock})
    theirs.set_progress_bar_config(disable=True)
    asked = {"image": photo, "prompt": "snow", "negative_prompt": "grey", "true_cfg_scale": 3.0}
    latents: list[torch.Tensor] = []
    end = pipeline.transformer.register_forward_hook(lambda _module, _args, output: latents.append(output[0])).remove

    render(pipeline, photo, "snow", GUIDED)
    end()
    stock.register_forward_hook(lambda _module, _args, output: latents.append(output[0]))
    theirs(
        **asked,
        width=256,
        height=256,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(7)],
        output_type="latent",
    )

    ours, expected = latents[:4], latents[4:]
    assert len(ours) == len(expected) == 4
    assert all(map(torch.equal, ours, expected))


def test_a_text_without_padding_brings_no_mask_and_none_is_missed(pipeline, photo) -> None:
    seen: list[dict[str, Any]] = []

    def note(_module: object, _args: object, inputs: dict[str, Any], output: tuple[torch.Tensor]) -> None:
        seen.append({**inputs, "output": output[0]})

    end = pipeline.transformer.register_forward_hook(note, with_kwargs=True).remove
    render(pipeline, photo, "snow")
    end()
    (inputs,) = seen
    output = inputs.pop("output")
    assert inputs["encoder_hidden_states_mask"] is None

    pipeline.scheduler._step_index = None  # back to the first step
    ones = torch.ones(inputs["encoder_hidden_states"].shape[:2], dtype=torch.long)
    with torch.inference_mode():
        masked = pipeline.transformer(**{**inputs, "encoder_hidden_states_mask": ones})[0]

    assert torch.allclose(masked, output, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_waits_for_the_device(models: Path, photo) -> None:
    pipeline = Editor.load(Settings(models=models, device="cuda"))._pipeline
    plan = replace(GUIDED, steps=4)
    render(pipeline, photo, "snow", plan)  # fills the tables: of the schedule, and of the rotary embedding
    watched: list[int] = []

    def start(*_: object) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def on_step(step: Step) -> None:
        watched.append(step.number)
        if step.number == plan.steps:
            torch.cuda.set_sync_debug_mode("default")

    pipeline.transformer.register_forward_pre_hook(start)
    try:
        pipeline.render(photo, "snow", plan, on_step, never)
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert watched == [1, 2, 3, 4]
