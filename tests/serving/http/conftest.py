from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gates import Gate
from tests.support.http_worker import HttpWorker, serving

PLACES = 3


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpWorker]:
    """One worker with few places, for a whole module."""
    with serving(models, tmp_path_factory.mktemp("server"), QWEN_EDIT_QUEUE=str(PLACES)) as server:
        yield server


@pytest.fixture(scope="module")
def good(photo_base64: str) -> dict[str, Any]:
    return {"image": photo_base64, "prompt": "make it snow", "width": 256, "height": 256, "seed": 5}


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Where a job of the test waits on the device."""
    with Gate() as gate:
        yield gate
