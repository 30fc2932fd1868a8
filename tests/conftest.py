import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from builder.made import tiny
from qwen_edit import Editor
from qwen_edit.settings import Settings
from tests.support.places import PHOTOS


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with half its blocks and heads, to save time. Tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, {**tiny.TRANSFORMER, "num_layers": 1, "num_attention_heads": 1})
    return folder


@pytest.fixture(scope="session")
def editor(models: Path) -> Editor:
    """One editor for all tests, as one process has."""
    return Editor.load(Settings(models=models, device="cpu"))


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A real photo, RGB, 451 × 300 pixels."""
    with Image.open(PHOTOS / "chelsea.png") as picture:
        return picture.convert("RGB")


@pytest.fixture(scope="session")
def photo_base64(photo: Image.Image) -> str:
    """The photo as a JPEG in base64."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=90)
    return base64.b64encode(file.getvalue()).decode("ascii")
