from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from qwen_edit.edit.hooks import Hooks, Step
from qwen_edit.edit.plan import Plan
from qwen_edit.errors import Cancelled, OutOfMemory
from qwen_edit.model import render as module
from qwen_edit.model.render import IN_TILES, ONE_AT_A_TIME, render
from qwen_edit.store.catalog import LIGHTNING

PHOTO = Image.new("RGB", (8, 8))
PLAN = Plan(LIGHTNING, 8, 1.0, None, 7, 256, 256, 1)


class Device:
    """A pipeline on a device whose memory runs out where it is told to. Its latents and pictures are their seeds."""

    def __init__(self, full_at_steps: tuple[int, ...] = (), full_decodes: int = 0) -> None:
        self._full_at = list(full_at_steps)
        self._full_decodes = full_decodes
        self.is_saving = False
        self.calls: list[tuple[str, list[int], bool]] = []

    def denoise(self, _picture: object, _prompt: str, plan: Plan, hooks: Hooks, _first: None) -> list[int]:
        assert 0 <= plan.seed < 2**63
        seeds = [(plan.seed + i) % 2**63 for i in range(plan.num_images)]
        self.calls.append(("denoise", seeds, self.is_saving))
        full_at = self._full_at.pop(0) if self._full_at else None
        for number in range(1, plan.steps + 1):
            if hooks.is_cancelled():
                raise Cancelled("the edit was cancelled")
            if number == full_at:
                raise OutOfMemory("full")
            hooks.on_step(Step(number, plan.steps, lambda: PHOTO))
        return seeds

    def decode(self, latents: list[int]) -> list[int]:
        self.calls.append(("decode", latents, self.is_saving))
        if self._full_decodes:
            self._full_decodes -= 1
            raise OutOfMemory("full")
        return latents

    @contextmanager
    def saving_memory(self) -> Iterator[None]:
        self.is_saving = True
        try:
            yield
        finally:
            self.is_saving = False


@pytest.fixture(autouse=True)
def _on_that_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "denoise", Device.denoise)
    monkeypatch.setattr(module, "decode", Device.decode)


def run(device: Any, plan: Plan = PLAN) -> tuple[list[Any], tuple[str, ...], list[int]]:
    """The pictures, the warnings, and the steps that were told."""
    told: list[int] = []
    pictures, warnings = render(device, PHOTO, "snow", plan, Hooks(lambda step: told.append(step.number)))
    return pictures, warnings, told


def test_with_enough_memory_everything_is_done_once() -> None:
    device = Device()

    pictures, warnings, told = run(device, replace(PLAN, num_images=2))

    assert (pictures, warnings) == ([7, 8], ())
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]
    assert device.calls == [("denoise", [7, 8], False), ("decode", [7, 8], False)]


def test_where_only_decoding_does_not_fit_no_step_is_done_again() -> None:
    device = Device(full_decodes=1)

    pictures, warnings, told = run(device, replace(PLAN, num_images=2))

    assert (pictures, warnings) == ([7, 8], (IN_TILES,))
    assert told == [1, 2, 3, 4, 5, 6, 7, 8]
    assert device.calls == [
        *(("denoise", [7, 8], False), ("decode", [7, 8], False)),
        ("decode", [7, 8], True),
    ]
    assert not device.is_saving


def test_where_the_steps_do_not_fit_the_pictures_are_made_one_at_a_time() -> None:
    device = Device(full_at_steps=(1,))

    pictures, warnings, _ = run(device, replace(PLAN, num_images=2, seed=2**63 - 1))

    last, first = 2**63 - 1, 0
    assert (pictures, warnings) == ([last, first], (ONE_AT_A_TIME,))
    assert device.calls == [
        ("denoise", [last, first], False),
        *(("denoise", [last], True), ("denoise", [first], True)),
        *(("decode", [last], True), ("decode", [first], True)),
    ]


@pytest.mark.parametrize("num_images", [1, 2, 3, 4])
@pytest.mark.parametrize("full_at", [1, 3, 8])
def test_the_steps_that_are_told_only_rise_and_end_at_the_last(num_images: int, full_at: int) -> None:
    _, _, told = run(Device(full_at_steps=(full_at,)), replace(PLAN, num_images=num_images))

    assert told == [1, 2, 3, 4, 5, 6, 7, 8]


def test_each_picture_that_is_made_alone_is_an_equal_part_of_the_steps() -> None:
    device = Device(full_at_steps=(1,))
    told: list[tuple[int, int]] = []

    def on_step(step: Step) -> None:
        told.append((len(device.calls) - 2, step.number))

    render(device, PHOTO, "snow", replace(PLAN, num_images=4), Hooks(on_step))  # type: ignore[arg-type]

    assert told == [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6), (3, 7), (3, 8)]


@pytest.mark.parametrize(
    "device", [Device(full_at_steps=(1, 1)), Device(full_decodes=2)], ids=["denoising", "decoding"]
)
def test_memory_that_is_full_twice_is_an_error_and_saving_ends(device: Device) -> None:
    with pytest.raises(OutOfMemory):
        run(device)

    assert not device.is_saving


def test_a_cancelled_edit_is_not_tried_again() -> None:
    device = Device()

    with pytest.raises(Cancelled):
        render(device, PHOTO, "snow", PLAN, Hooks(is_cancelled=lambda: True))  # type: ignore[arg-type]

    assert len(device.calls) == 1
