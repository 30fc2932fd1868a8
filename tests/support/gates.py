"""Places at which a job waits for its test: the test listens, and the job's prompt says where.

A job with `gate PORT` in its prompt is held on the device, before its last step, until the gate is open. One with
`decoded PORT` says that it is decoded, and goes on.
"""

import socket
from contextlib import suppress
from typing import Self

from qwen_edit.edit.hooks import Hooks, Step
from tests.support.patience import PATIENCE

LOOPBACK = "127.0.0.1"
PACE = 0.1
"""Seconds that a step takes at least on the way to a gate: the seven of a usual edit are time for an update."""


class Gate:
    """The test's side. Closing it lets everybody pass, so that a test that fails holds no worker."""

    def __init__(self) -> None:
        self._server = socket.create_server((LOOPBACK, 0))
        self._server.settimeout(PATIENCE)
        self._arrived: socket.socket | None = None
        self.port: int = self._server.getsockname()[1]

    def reached(self) -> None:
        """Wait until the job is there.

        Raises:
            TimeoutError: it does not come.
        """
        self._arrived, _ = self._server.accept()

    def open(self) -> None:
        """Let the job pass."""
        self._server.close()  # first, so that a job that comes now finds no gate
        if self._arrived is not None:
            self._arrived.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


class Arrival:
    """The job's side, at a gate."""

    def __init__(self, port: int) -> None:
        """Tell the test, which may have opened the gate already."""
        self._connection: socket.socket | None = None
        with suppress(ConnectionError):
            self._connection = socket.create_connection((LOOPBACK, port))

    def is_open(self, seconds: float) -> bool:
        """Whether the gate is open, or opens within so many seconds."""
        if self._connection is None:
            return True
        self._connection.settimeout(seconds)
        try:
            self._connection.recv(1)
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        self._connection.close()
        self._connection = None
        return True


def held(hooks: Hooks, prompt: str) -> Hooks:
    """The hooks of a job that is held where its prompt says so."""
    port = port_after("gate", prompt)
    if port is None:
        return hooks
    arrival = Arrival(port)

    def on_step(step: Step) -> None:
        arrival.is_open(PACE)
        hooks.on_step(step)
        while step.number == step.steps - 1 and not hooks.is_cancelled() and not arrival.is_open(PACE):
            pass

    return Hooks(on_step, hooks.is_cancelled)


def announce(prompt: str) -> None:
    """Say that a job is decoded, where its prompt asks for it."""
    port = port_after("decoded", prompt)
    if port is not None:
        Arrival(port)


def port_after(word: str, prompt: str) -> int | None:
    """The port that follows a word of a prompt."""
    words = prompt.split()
    return int(words[words.index(word) + 1]) if word in words else None
