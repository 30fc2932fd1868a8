"""The loop against diffusers' own pipeline around the same stock transformer, on the CPU in float32."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from qwen_edit import Editor
from qwen_edit.edit.hooks import NO_HOOKS, Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.errors import Cancelled, InvalidRequest
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.sampling import denoise
from qwen_edit.model.vae import packed, unpacked
from qwen_edit.store.catalog import LIGHTNING, ORIGINAL, Checkpoint
from tests.support.stock import stock_latents, stock_pipeline, stock_transformer

PLAN = Plan(LIGHTNING, 2, 1.0, None, 7, 256, 256, 1)
GUIDED = replace(PLAN, true_cfg_scale=3.0, negative_prompt="grey")
PLANS = {
    "lightning": PLAN,
    "lightning with all its steps": replace(PLAN, steps=8),
    "lightning with guidance at another size": replace(GUIDED, width=352, height=272),
    "original with guidance": replace(GUIDED, checkpoint=ORIGINAL, true_cfg_scale=4.0, negative_prompt=" "),
    "two pictures": replace(PLAN, num_images=2),
    "two pictures with guidance": replace(GUIDED, num_images=2),
    "a negative prompt": replace(GUIDED, negative_prompt="blurry, façade → 雪"),
}


@pytest.fixture
def stocked(editor: Editor, models: Path) -> Callable[[Checkpoint], EditPipeline]:
    """The pipeline with diffusers' transformer in it, and nothing kept."""
    pipeline = editor.pipeline

    def use(checkpoint: Checkpoint) -> EditPipeline:
        editor.change_to(checkpoint)
        pipeline.contents.clear()
        pipeline.transformer, pipeline.modulations = stock_transformer(models / checkpoint.path), None
        return pipeline

    return use


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_latents_are_those_of_the_stock_pipeline_to_the_bit(
    stocked: Callable[[Checkpoint], EditPipeline], photo: Image.Image, plan: Plan
) -> None:
    pipeline = stocked(plan.checkpoint)

    ours = denoise(pipeline, photo, "make it snow", plan, NO_HOOKS)

    stock = stock_pipeline(pipeline, pipeline.transformer)
    assert torch.equal(packed(ours), stock_latents(stock, photo, "make it snow", plan))


def test_a_prompt_and_a_picture_that_are_kept_give_the_same_bits(
    stocked: Callable[[Checkpoint], EditPipeline], photo: Image.Image
) -> None:
    pipeline = stocked(LIGHTNING)
    denoise(pipeline, photo, "make it snow", GUIDED, NO_HOOKS)
    runs: list[object] = []
    for encoder in (pipeline.prompts.text_encoder, pipeline.vae.encoder):
        encoder.register_forward_pre_hook(lambda *_: runs.append(None))

    again = denoise(pipeline, photo.copy(), "make it snow", GUIDED, NO_HOOKS)

    assert not runs
    stock = stock_pipeline(pipeline, pipeline.transformer)
    assert torch.equal(packed(again), stock_latents(stock, photo, "make it snow", GUIDED))


def test_the_dense_backend_gives_nearly_the_latents_of_the_stock_transformer(
    editor: Editor, models: Path, photo: Image.Image
) -> None:
    pipeline = editor.pipeline

    ours = packed(denoise(pipeline, photo, "make it snow", GUIDED, NO_HOOKS))

    stock = stock_pipeline(pipeline, stock_transformer(models / LIGHTNING.path))
    expected = stock_latents(stock, photo, "make it snow", GUIDED)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def test_modulations_that_are_looked_up_change_no_bit(
    editor: Editor, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = denoise(editor.pipeline, photo, "make it snow", GUIDED, NO_HOOKS)

    monkeypatch.setattr(editor.pipeline, "modulations", None)

    assert torch.equal(looked_up, denoise(editor.pipeline, photo, "make it snow", GUIDED, NO_HOOKS))


def inputs() -> tuple[Tensor, Tensor, None, Tensor, list[list[tuple[int, int, int]]]]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 2 * 8 * 6, 64, generator=generator)
    return tokens, torch.randn(1, 7, 128, generator=generator), None, torch.tensor([0.3]), [[(1, 8, 6), (1, 8, 6)]]


def test_a_plain_forward_with_positional_arguments_gives_nearly_what_the_stock_transformer_gives(
    editor: Editor, models: Path, photo: Image.Image
) -> None:
    transformer = editor.pipeline.transformer
    denoise(editor.pipeline, photo, "make it snow", PLAN, NO_HOOKS)  # whose last step leaves nothing behind

    with torch.inference_mode():
        ours = transformer(*inputs()).sample
        expected = stock_transformer(models / LIGHTNING.path)(*inputs()).sample

    assert torch.allclose(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_first_steps_alone_are_those_of_the_whole_schedule(editor: Editor, photo: Image.Image) -> None:
    seen: list[Step] = []
    whole: list[Tensor] = []

    def keep(step: Step) -> None:
        seen.append(step)

    part = denoise(editor.pipeline, photo, "make it snow", replace(PLAN, steps=8), Hooks(keep), first=2)
    whole.append(denoise(editor.pipeline, photo, "make it snow", replace(PLAN, steps=8), NO_HOOKS))

    assert [(step.number, step.steps) for step in seen] == [(1, 8), (2, 8)]
    assert part.shape == whole[0].shape
    assert not torch.equal(part, whole[0])


def test_a_cancelled_edit_ends_after_the_step_and_is_told_of_no_other(editor: Editor, photo: Image.Image) -> None:
    passes: list[object] = []
    told: list[Step] = []
    editor.pipeline.transformer.register_forward_pre_hook(lambda *_: passes.append(None))

    with pytest.raises(Cancelled):
        denoise(editor.pipeline, photo, "snow", replace(PLAN, steps=8), Hooks(told.append, lambda: len(passes) == 3))

    assert [step.number for step in told] == [1, 2]
    assert len(passes) == 3


def test_a_prompt_that_leaves_no_room_is_refused_with_the_tokens(editor: Editor, photo: Image.Image) -> None:
    with pytest.raises(
        InvalidRequest, match=r"^invalid_request: prompt is too long: with this picture it makes [\d,]+ tokens"
    ):
        denoise(editor.pipeline, photo, "雪" * 4000, PLAN, NO_HOOKS)


def test_tokens_and_latents_are_each_others_inverse() -> None:
    latents = torch.randn(2, 16, 1, 8, 12)

    tokens = packed(latents)

    assert tokens.shape == (2, 4 * 6, 64)
    assert torch.equal(unpacked(tokens, (96, 64)), latents)
    assert torch.equal(tokens[0, 1, :4], latents[0, 0, 0, :2, 2:4].flatten())
