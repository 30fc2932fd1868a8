"""When the weights of a module come, and which of them stay."""

import mmap

import pytest
import torch
from torch import Tensor, nn

from qwen_edit.model.offload import homes, parked
from qwen_edit.model.offload.homes import make_homes
from qwen_edit.model.offload.parked import Parked
from tests.support.late_lane import LateLane

CPU = torch.device("cpu")
BYTES = 4 * (32 * 32 + 32)
"""Of the weights of one layer."""


class Block(nn.Module):
    def __init__(self, events: list[tuple[str, int]], number: int) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32)
        self.layers = nn.ModuleList([self.layer])  # a list in a block, whose parts wait with it
        self._events = events
        self._number = number

    def forward(self, x: Tensor) -> Tensor:
        self._events.append(("block", self._number))
        made: Tensor = self.layer(x)
        return made


class Net(nn.Module):
    """A layer, three blocks, a layer."""

    def __init__(self, events: list[tuple[str, int]]) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.blocks = [Block(events, number) for number in range(3)]
        self.inner = nn.Module()
        self.inner.add_module("blocks", nn.ModuleList(self.blocks))
        self.last = nn.Linear(32, 32)
        self.requires_grad_(requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.last(x)
        return made


@pytest.fixture
def lane() -> LateLane:
    return LateLane()


@pytest.fixture
def net(lane: LateLane, monkeypatch: pytest.MonkeyPatch) -> Net:
    """A module whose layers have a home each, but for the first and the last, which share one."""
    monkeypatch.setattr(homes, "HOME_BYTES", 2 * BYTES)
    monkeypatch.setattr(parked, "make_homes", lambda tensors, pin: one_for_each_block(tensors, pin))
    return Net(lane.events)


def one_for_each_block(tensors: list[Tensor], pin: homes.Pin) -> list[homes.Home]:
    parts = [tensors[:4], *(tensors[start : start + 2] for start in range(4, len(tensors), 2))]
    return [home for part in parts for home in make_homes(part, pin)]


def test_a_block_computes_when_its_weights_are_there_and_not_when_all_are(lane: LateLane, net: Net) -> None:
    x = torch.randn(2, 32)
    expected = net(x)
    away = Parked(net, CPU, lane)
    lane.events.clear()

    away.bring()
    made = net(x)

    assert torch.equal(made, expected)
    asked = [("begin", 0), ("copy", 0), ("copy", 1), ("copy", 2), ("copy", 3)]
    of_blocks = [("wait", 1), ("block", 0), ("wait", 2), ("block", 1), ("wait", 3), ("block", 2)]
    assert lane.events == [*asked, ("wait", 0), *of_blocks]


def test_a_second_call_waits_for_nothing(lane: LateLane, net: Net) -> None:
    away = Parked(net, CPU, lane)
    away.bring()
    x = torch.randn(2, 32)
    expected = net(x)
    lane.events.clear()

    assert torch.equal(net(x), expected)
    assert {event for event, _ in lane.events} == {"block"}


def test_all_of_it_is_waited_for_where_it_is_wanted_whole(lane: LateLane, net: Net) -> None:
    away = Parked(net, CPU, lane, whole=True)
    lane.events.clear()

    away.bring()

    assert [event for event, _ in lane.events] == ["begin", *["copy"] * 4, *["wait"] * 4]


def test_whoever_reads_a_block_without_calling_it_can_wait_for_all(lane: LateLane, net: Net) -> None:
    weight = net.last.weight.clone(), [block.layer.weight.clone() for block in net.blocks]
    away = Parked(net, CPU, lane)
    away.bring()
    assert net.blocks[2].layer.weight.isnan().all()

    away.arrive()

    assert torch.equal(net.last.weight, weight[0])
    for block, expected in zip(net.blocks, weight[1], strict=True):
        assert torch.equal(block.layer.weight, expected)


def test_memory_is_given_back_after_the_copies_into_it(lane: LateLane, net: Net) -> None:
    away = Parked(net, CPU, lane)
    away.bring()
    lane.events.clear()

    away.release()

    assert lane.events == [("wait", 1), ("wait", 2), ("wait", 3)]


@pytest.mark.parametrize(
    ("keep", "stay"), [(0, 0), (2 * BYTES - 1, 0), (2 * BYTES, 1), (3 * BYTES, 2), (4 * BYTES + 7, 3), (10**9, 4)]
)
def test_what_is_needed_first_stays_and_is_not_copied_again(keep: int, stay: int, lane: LateLane, net: Net) -> None:
    x = torch.randn(2, 32)
    expected = net(x)
    away = Parked(net, CPU, lane)
    away.bring()
    away.release(keep)
    here = [net.first, *(block.layer for block in net.blocks)]
    assert [bool(layer.weight.numel()) for layer in here] == [number < stay for number in range(4)]
    assert away.is_here == (stay == 4)
    lane.events.clear()

    away.bring()

    assert len([event for event, _ in lane.events if event == "copy"]) == 4 - stay
    assert torch.equal(net(x), expected)


def test_a_storage_is_used_in_parts_and_pinned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "LARGE_BYTES", 1)
    monkeypatch.setattr(homes, "HOME_BYTES", 3 * mmap.PAGESIZE)
    storage = torch.randn(8 * mmap.PAGESIZE)
    tensors = [storage[start : start + 1000] for start in range(0, len(storage) - 1000, 1024)]
    pinned: list[tuple[int, int]] = []

    made = make_homes(tensors[::-1], lambda memory: pinned.append((memory.data_ptr(), memory.nbytes)))

    assert pinned == [(storage.data_ptr(), storage.nbytes)]
    assert all(home.nbytes <= 3 * mmap.PAGESIZE + 3 * 24 * 4 for home in made)
    assert len(made) == 11
    for home in made:
        assert home.memory.untyped_storage().data_ptr() == storage.data_ptr()
        copy = home.memory.clone()
        for tensor, place in zip(home.tensors, home.places, strict=True):
            assert torch.equal(place.view(copy), tensor)
            assert place.view(home.memory).data_ptr() == tensor.data_ptr()
    assert [made[0].tensors[-1] is tensors[-1], made[-1].tensors[0] is tensors[0]] == [True, True]
