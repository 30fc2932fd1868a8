"""What the server holds after many requests."""

import asyncio
import tempfile
from pathlib import Path

from bench.http.client import IN_FLIGHT, edit, resident_mb, seconds_an_edit
from qwen_edit.serving.jobs.job import SYNC_KEPT_S
from tests.support.http_worker import serving

EARLY, ALL, SIDE = 50, 300, 512


def memory(models: Path) -> None:
    """Print the resident memory after 50 requests, after 300, and once the results that are kept were let go."""
    with tempfile.TemporaryDirectory() as folder, serving(models, Path(folder)) as server:
        early, late, after = asyncio.run(_run(server.port, server.worker.process.pid))
    print(f"Edits to {SIDE} × {SIDE} pixels of noise on a device that does not sleep, {IN_FLIGHT} at once.\n")
    print(f"| after {EARLY} requests | after {ALL} | once no result is kept |\n|---|---|---|")
    print(f"| {early:.0f} MB | {late:.0f} MB | {after:.0f} MB |", flush=True)


async def _run(port: int, pid: int) -> tuple[float, float, float]:
    await seconds_an_edit(port, EARLY, edit(side=SIDE))
    early = resident_mb(pid)
    await seconds_an_edit(port, ALL - EARLY, edit(side=SIDE))
    late = resident_mb(pid)
    await asyncio.sleep(SYNC_KEPT_S + 5)
    return early, late, resident_mb(pid)
