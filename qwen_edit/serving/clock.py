"""Time as the service sees it, so that tests can move it, and the pauses between attempts."""

import asyncio
import time
from dataclasses import dataclass


class Clock:
    """The machine's monotonic clock, in seconds."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Pauses:
    """Pauses that double from `first` to `longest` seconds, until something goes well."""

    first: float = 1.0
    longest: float = 30.0
    failures: int = 0

    def next(self) -> float:
        """The seconds to wait after one more failure."""
        pause = min(self.longest, self.first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return pause

    def reset(self) -> bool:
        """Forget the failures. Returns whether there were any."""
        had, self.failures = self.failures > 0, 0
        return had
