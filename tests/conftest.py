import base64
import io
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from builder.made import tiny
from qwen_edit import Editor
from qwen_edit.settings import Settings
from tests.support.places import PHOTOS
from tests.support.restored import restored

# A busy machine takes its time over an example, and that is no fault of the code.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with half its blocks and heads, to save time. Tests that damage it work on a copy."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write(folder, {**tiny.TRANSFORMER, "num_layers": 1, "num_attention_heads": 1})
    return folder


@pytest.fixture(scope="session")
def shared_editor(models: Path) -> Editor:
    """One editor for all tests, as one process has. A test asks for `editor`, a longer fixture for this one."""
    return Editor.load(Settings(models=models, device="cpu"))


@pytest.fixture
def editor(shared_editor: Editor) -> Iterator[Editor]:
    """On the lightning checkpoint. A test may exchange its parts and attach hooks: they are put back."""
    with restored(shared_editor):
        yield shared_editor


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
