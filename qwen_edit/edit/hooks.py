"""What an edit calls and asks while it runs."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Step:
    """A finished denoising step: its number, from 1, how many there are, and a way to see how far the picture is.

    `preview` costs a few milliseconds and a wait for the device, so call it seldom, and only from within `on_step`.
    """

    number: int
    steps: int
    preview: Callable[[], Image.Image]


OnStep = Callable[[Step], None]


def ignore(_step: Step) -> None:
    """An `on_step` that does nothing."""


def never() -> bool:
    """An `is_cancelled` that is never set."""
    return False


@dataclass(frozen=True)
class Hooks:
    """`on_step` is called after each denoising step. `is_cancelled` is asked before the first step and after each."""

    on_step: OnStep = ignore
    is_cancelled: Callable[[], bool] = never


NO_HOOKS = Hooks()
