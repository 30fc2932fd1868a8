import gc
from collections.abc import Iterator

import pytest

from qwen_edit.loading.imports.collector import collector_paused


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.collect()  # lest the garbage of other tests is kept
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_inside_and_what_was_made_is_passed_by_afterwards() -> None:
    before = gc.get_freeze_count()

    with collector_paused():
        enabled = gc.isenabled()
        kept: list[list[object]] = [[] for _ in range(1000)]

    assert not enabled
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(kept)


def test_an_error_does_not_leave_the_collector_off() -> None:
    with pytest.raises(ValueError, match="load"), collector_paused():
        raise ValueError("load")

    assert gc.isenabled()
