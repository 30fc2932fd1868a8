"""Health's latency for many clients while edits run."""

import asyncio
import itertools
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bench.http.client import Connection, edit, seconds_an_edit
from tests.support.http_worker import FAKE, serving

CLIENTS, PERIOD_S = 200, 1.0


def pings(models: Path, seconds: float) -> None:
    """Print the latencies of 200 clients who ask for /ping once a second, without edits and beside two kinds of them.

    A latency counts from the moment at which the question was due, so that a client that is late itself is in it; how
    late the clients were is a column of its own.
    """
    print(f"{CLIENTS} clients, each at one /ping a second for {seconds:g} s.\n")
    print("| meanwhile | pings | p50 | p99 | longest | the clients' own lateness, p99 |\n|---|---|---|---|---|---|")
    for name, program, is_editing in (
        ("nothing", FAKE, False),
        ("edits on a device that sleeps", FAKE, True),
        ("edits of the demo model on the CPU", ("handler.py",), True),
    ):
        with tempfile.TemporaryDirectory() as folder, serving(models, Path(folder), *program) as server:
            latencies, lateness = asyncio.run(_run(server.port, seconds, is_editing=is_editing))
        figures = " | ".join(f"{1000 * value:.1f} ms" for value in (*_spread(latencies), _spread(lateness)[1]))
        print(f"| {name} | {len(latencies)} | {figures} |", flush=True)


async def _run(port: int, seconds: float, *, is_editing: bool) -> tuple[list[float], list[float]]:
    editing = asyncio.ensure_future(_edit_for_ever(port)) if is_editing else None
    latencies, lateness = list[float](), list[float]()
    begin = time.monotonic() + PERIOD_S

    async def client(number: int) -> None:
        connection = await Connection.open(port)
        for turn in itertools.count():
            due = begin + number * PERIOD_S / CLIENTS + turn * PERIOD_S
            if due > begin + seconds:
                break
            await asyncio.sleep(due - time.monotonic())
            lateness.append(time.monotonic() - due)
            reply = await connection.ask("/ping")
            latencies.append(time.monotonic() - due)
            assert reply.status == 200, reply.status
        connection.close()

    await asyncio.gather(*map(client, range(CLIENTS)))
    if editing is not None:
        assert not editing.done(), "the edits ended before the pings"
        editing.cancel()
        with suppress(asyncio.CancelledError):
            await editing
    return latencies, lateness


async def _edit_for_ever(port: int) -> None:
    while True:
        await seconds_an_edit(port, 10, edit(1.0))


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, the 99th percentile, and the longest."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2], ordered[round(0.99 * (len(ordered) - 1))], ordered[-1]
