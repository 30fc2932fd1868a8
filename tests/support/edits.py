"""Edits without a request around them."""

from PIL import Image

from qwen_edit.edit.hooks import NO_HOOKS, Hooks
from qwen_edit.edit.plan import Plan
from qwen_edit.model.pipeline import EditPipeline
from qwen_edit.model.render import render as rendered


def render(
    pipeline: EditPipeline, picture: Image.Image, plan: Plan, prompt: str = "make it snow", hooks: Hooks = NO_HOOKS
) -> Image.Image:
    """The one picture of a plan that runs without a warning."""
    (made,), warnings = rendered(pipeline, picture, prompt, plan, hooks)
    assert warnings == ()
    return made
