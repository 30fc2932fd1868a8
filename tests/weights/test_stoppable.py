from pathlib import Path

import pytest
import torch

from qwen_edit.errors import Cancelled
from qwen_edit.store.catalog import LIGHTNING
from qwen_edit.weights.reader import Weights
from qwen_edit.weights.sinks import sink_for
from qwen_edit.weights.stoppable import Stoppable

CPU = torch.device("cpu")
BYTES_A_READ = 1 << 16


def reading(path: Path, after: int) -> tuple[Weights, list[int]]:
    """A file that is read until so many blocks have been asked for, and as many items as were asked for."""
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > after

    sink = Stoppable(sink_for(CPU, 1, BYTES_A_READ), cancelled)
    return Weights([path], CPU, readers=1, bytes_a_read=BYTES_A_READ, sink=sink), asked


def test_a_flag_that_is_set_ends_the_reading_between_two_reads_of(models: Path) -> None:
    weights, asked = reading(models / LIGHTNING.path, after=2)
    with weights, pytest.raises(Cancelled, match="the load was cancelled"):
        weights.tensors(models / LIGHTNING.path)

    assert len(asked) > 2


def test_a_flag_that_is_not_set_changes_nothing(models: Path) -> None:
    path = models / LIGHTNING.path
    stoppable, asked = reading(path, after=10**9)
    with stoppable, Weights([path], CPU) as plain:
        ours, expected = stoppable.tensors(path), plain.tensors(path)

    assert len(asked) == -(-sum(tensor.nbytes for tensor in expected.values()) // BYTES_A_READ)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name].view(torch.uint8), expected[name].view(torch.uint8)) for name in expected)
