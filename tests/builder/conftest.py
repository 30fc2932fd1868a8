from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.bake.hub import Hub, Patience
from tests.support import baked
from tests.support.loopback_hub import LoopbackHub
from tests.support.patience import PATIENCE


@pytest.fixture
def remote() -> Iterator[LoopbackHub]:
    """The hub's side."""
    with LoopbackHub(baked.repositories()) as server:
        yield server


@pytest.fixture
def hub(remote: LoopbackHub) -> Hub:
    """The client's side, which soon asks again."""
    return Hub(endpoint=remote.url, patience=Patience(attempts=3, wait=0.01, longest=0.02, timeout=PATIENCE))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where to bake."""
    return tmp_path / "models"


@pytest.fixture
def whole(folder: Path) -> Path:
    """A model directory with nothing wrong in it."""
    baked.write(folder)
    return folder
