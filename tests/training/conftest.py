from pathlib import Path

import pytest

from builder.made.demo import files
from qwen_edit import Editor
from qwen_edit.settings import Settings


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as `python -m builder demo` lays it out."""
    folder = tmp_path_factory.mktemp("demo")
    files.write(folder)
    return folder


@pytest.fixture(scope="session")
def demo(demo_models: Path) -> Editor:
    """An editor of the demo model, on the lightning checkpoint at first."""
    return Editor.load(Settings(models=demo_models, device="cpu"))
