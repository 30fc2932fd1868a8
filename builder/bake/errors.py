"""What can go wrong while baking, as one sentence that says what to do."""

import errno
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BakeError(Exception):
    """A part that cannot be brought; `str()` is one sentence with the remedy behind the last semicolon."""


class UsageError(Exception):
    """An argument that cannot be used; `str()` is one sentence that names what exists."""


class BusyError(BakeError):
    """Another process is writing to the model directory."""


class OccupiedError(BakeError):
    """The model directory holds what a command must neither replace nor mix with its own."""

    def __init__(self, models: Path, held: str) -> None:
        remedy = "choose another directory with --models or MODEL_CACHE_DIR, or remove what is there"
        super().__init__(f"{models} holds {held}; {remedy}")


class HubError(BakeError):
    """The hub did not give what was asked.

    `transient` errors are worth another attempt, after `wait` seconds where the hub named a time. Where the hub
    `is_slow`, what it did bring is no progress.
    """

    def __init__(
        self, problem: str, remedy: str, *, transient: bool = False, wait: float | None = None, is_slow: bool = False
    ) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.transient = transient
        self.wait = wait
        self.is_slow = is_slow

    def after(self, attempts: int) -> "HubError":
        """The same error once all attempts are used up."""
        return HubError(f"{self.problem}, {attempts} times in a row", self.remedy)


class WrongContentError(BakeError):
    """What arrived is not what the hub's listing promises."""


class StoppedError(Exception):
    """Another thread asked to stop."""


def local_fault(error: OSError, path: Path) -> BakeError:
    """What this machine refused, with the remedy."""
    if error.errno in _FULL:
        problem = f"{path} cannot be written: the disk is full ({error.strerror})"
        return BakeError(f"{problem}; free some space and run the same command again")
    return BakeError(f"{path} cannot be written: {error.strerror}; check the folder's owner and permissions")
