"""A clock that a test moves: whoever sleeps on it goes on at once, and it is later by then."""

import asyncio

from qwen_edit.serving.clock import Clock


class MovedClock(Clock):
    """Begins at 0 seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sleeps: list[float] = []

    def now(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds
        await asyncio.sleep(0)
