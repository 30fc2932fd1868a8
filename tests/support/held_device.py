"""handler.py with its real pipeline, which holds a job at the gate that its prompt names."""

import runpy

from PIL import Image
from torch import Tensor

from qwen_edit.edit.hooks import Hooks
from qwen_edit.edit.plan import Plan
from qwen_edit.model import render, sampling
from qwen_edit.model.pipeline import EditPipeline
from tests.support.gates import held
from tests.support.places import ROOT


def denoise(
    pipeline: EditPipeline, picture: Image.Image, prompt: str, plan: Plan, hooks: Hooks, first: int | None = None
) -> Tensor:
    """The real loop, which stops at gates."""
    return sampling.denoise(pipeline, picture, prompt, plan, held(hooks, prompt), first)


if __name__ == "__main__":
    render.denoise = denoise  # type: ignore[attr-defined]
    runpy.run_path(str(ROOT / "handler.py"), run_name="__main__")
