"""Connections that are there to be in the way, and what they cost the edits of everybody else."""

import asyncio
import socket
import statistics
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.http.client import LOOPBACK, Connection, ask, edit, resident_mb, seconds_an_edit
from tests.support.http_worker import HttpWorker, serving

EACH = 50
STALLED_S = 15.0
"""After which a reader who takes nothing gives up and comes again, which is before the server cuts it off."""

RECEIVED = 4096
"""Bytes that the system keeps for a reader who takes nothing."""

SIDE = 1024
"""Pixels of the noise whose picture the stalled readers ask for: far more bytes than a socket holds."""


class Crowd:
    """Silent, dripping and stalled connections, fifty of each. `ended` counts how often each kind was cut off."""

    def __init__(self, port: int, large: str) -> None:
        self._port = port
        self._large = large
        self.ended: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        for kind in (self._silent, self._dripping, self._stalled):
            self._tasks += [asyncio.ensure_future(self._again(kind)) for _ in range(EACH)]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _again(self, kind: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await kind()
            except (OSError, asyncio.IncompleteReadError):
                self.ended[kind.__name__[1:]] += 1

    async def _silent(self) -> None:
        connection = await Connection.open(self._port)
        try:
            await connection.reader.read()
            self.ended["silent"] += 1
        finally:
            connection.close()

    async def _dripping(self) -> None:
        connection = await Connection.open(self._port)
        try:
            connection.writer.write(b"POST /run HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n")
            while not connection.reader.at_eof():
                connection.writer.write(b" ")
                await connection.writer.drain()
                await asyncio.sleep(1)
            self.ended["dripping"] += 1
        finally:
            connection.close()

    async def _stalled(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
            one.setblocking(False)
            await loop.sock_connect(one, (LOOPBACK, self._port))
            await loop.sock_sendall(one, f"GET {self._large} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            await asyncio.sleep(STALLED_S)


def hostile(models: Path, rounds: int, edits: int, seconds: float) -> None:
    """Print the seconds an edit with and without 150 such connections, in turn at one server."""
    with tempfile.TemporaryDirectory() as folder, serving(models, Path(folder)) as server:
        asyncio.run(_run(server, rounds, edits, seconds))


async def _run(server: HttpWorker, rounds: int, edits: int, seconds: float) -> None:
    large = (await ask(server.port, "/run", edit(side=SIDE), "POST")).json()["id"]
    size = len((await ask(server.port, f"/status-sync/{large}")).body)
    times: dict[bool, list[float]] = {False: [], True: []}
    memory: dict[bool, list[float]] = {False: [], True: []}
    ended: Counter[str] = Counter()
    await seconds_an_edit(server.port, 2, edit(seconds))
    for _ in range(rounds):
        for is_crowded in times:
            crowd = Crowd(server.port, f"/status/{large}")
            if is_crowded:
                crowd.begin()
                await asyncio.sleep(1)
            times[is_crowded].append(await seconds_an_edit(server.port, edits, edit(seconds)))
            memory[is_crowded].append(resident_mb(server.worker.process.pid))
            await crowd.end()
            ended += crowd.ended
    print(f"{rounds} rounds in turn of {edits} edits of {seconds:g} s on a device that sleeps; the stalled readers ask")
    print(f"for an answer of {size / 1e6:.1f} MB. Cut off by the server meanwhile: ", end="")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(ended.items())) or "none", end=".\n\n")
    print("| beside | seconds an edit, median (range) | resident, median |\n|---|---|---|")
    for is_crowded, name in ((False, "nobody"), (True, f"{EACH} silent, {EACH} dripping, {EACH} stalled")):
        each = times[is_crowded]
        spread = f"{statistics.median(each):.3f} ({min(each):.3f}–{max(each):.3f})"
        print(f"| {name} | {spread} | {statistics.median(memory[is_crowded]):.0f} MB |", flush=True)
