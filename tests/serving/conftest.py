from pathlib import Path

import pytest

from builder.made import tiny
from tests.support.programs import Run, running


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model exactly as `python -m builder tiny` writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_models: Path) -> Run:
    """Run Python in the repository, on the tiny model, saving to `tmp_path / "saved"`."""
    return running({"MODEL_CACHE_DIR": str(tiny_models), "QWEN_EDIT_SAVE_DIR": str(tmp_path / "saved")})
