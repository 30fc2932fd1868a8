"""Each way to compute the demo's checkpoint, measured by what becomes of the photo."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from qwen_edit import Editor
from qwen_edit.errors import ModelUnavailable
from qwen_edit.settings import Backend, Settings
from qwen_edit.store.catalog import LIGHTNING
from tests.model.transformer.test_fp8_linear import load_fp8
from tests.training.test_quality import LEAST, MARGIN, edited
from training.quality import score

PROMPT, NAME = "invert the colors", "invert"


def test_fp8_loses_less_than_three_decibels(demo: Editor, demo_models: Path, photo: Image.Image) -> None:
    dense = score(edited(demo, photo, PROMPT), photo, NAME)
    demo.pipeline.transformer = load_fp8(demo_models / LIGHTNING.path, torch.float32)
    fp8 = score(edited(demo, photo, PROMPT), photo, NAME)

    assert fp8 != dense
    assert fp8.right > dense.right - 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["dense", "dense-fp8", "nunchaku"])
def test_a_backend_of_this_gpu_follows_an_instruction(demo_models: Path, photo: Image.Image, backend: Backend) -> None:
    try:
        editor = Editor.load(Settings(models=demo_models, device="cuda", backend=backend))
    except ModelUnavailable as error:
        pytest.skip(error.sentence)

    found = score(edited(editor, photo, PROMPT), photo, NAME)

    assert found.right >= LEAST
    assert found.margin >= MARGIN
