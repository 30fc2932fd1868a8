"""What can go wrong while baking, as one sentence that says what to do."""


class BakeError(Exception):
    """A part that cannot be brought; `str()` is one sentence with the remedy behind the last semicolon."""


class UsageError(Exception):
    """An argument that cannot be used; `str()` is one sentence that names what exists."""


class HubError(BakeError):
    """The hub did not give what was asked.

    `transient` errors are worth another attempt, after `wait` seconds where the hub named a time.
    """

    def __init__(self, problem: str, remedy: str, *, transient: bool = False, wait: float | None = None) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.transient = transient
        self.wait = wait

    def after(self, attempts: int) -> "HubError":
        """The same error once all attempts are used up."""
        return HubError(f"{self.problem}, {attempts} times in a row", self.remedy)


class WrongContentError(BakeError):
    """What arrived is not what the hub's listing promises."""


class StoppedError(Exception):
    """Another thread asked to stop."""
