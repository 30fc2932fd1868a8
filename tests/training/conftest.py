from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.made.demo import files
from qwen_edit import Editor
from qwen_edit.settings import Settings
from tests.support.restored import restored


@pytest.fixture(scope="session")
def demo_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as `python -m builder demo` lays it out."""
    folder = tmp_path_factory.mktemp("demo")
    files.write(folder)
    return folder


@pytest.fixture(scope="session")
def shared_demo(demo_models: Path) -> Editor:
    """One editor of the demo model for all tests, which ask for `demo`."""
    return Editor.load(Settings(models=demo_models, device="cpu"))


@pytest.fixture
def demo(shared_demo: Editor) -> Iterator[Editor]:
    """On the lightning checkpoint. A test may exchange its parts: they are put back."""
    with restored(shared_demo):
        yield shared_demo
