from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.hub import Hub, Patience
from tests.builder import sample
from tests.builder.loopback_hub import LoopbackHub


@pytest.fixture
def remote() -> Iterator[LoopbackHub]:
    """The hub's side."""
    with LoopbackHub(sample.repositories()) as server:
        yield server


@pytest.fixture
def hub(remote: LoopbackHub) -> Hub:
    """The client's side, with little patience."""
    return Hub(endpoint=remote.url, patience=Patience(attempts=3, wait=0.01, longest=0.02, timeout=5.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to bake."""
    return tmp_path / "models"


@pytest.fixture
def whole(folder: Path) -> Path:
    """A model directory with nothing wrong in it."""
    sample.write(folder)
    return folder
