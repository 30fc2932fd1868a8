"""A clock that moves only when a test moves it."""


class Clock:
    """In place of the module `time`, in the module under test."""

    def __init__(self) -> None:
        self.now = 128.0
        """Seconds. A power of two, so that small binary fractions add up exactly."""

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now
