"""More edits at once than there are places: which are taken, which are refused, and that none is lost or done twice."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.http.client import ask, edit
from tests.support.http_worker import serving
from tests.support.patience import PATIENCE

CALLERS, PLACES, SECONDS = 64, 8, 0.4


@dataclass
class Told:
    """What the callers were told: jobs that were taken → how they ended, and the statuses of refusals."""

    ends: dict[str, str]
    refused: Counter[int]


def crowd(models: Path) -> None:
    """Print what becomes of 64 edits at eight places, for callers who ask once and for callers who obey Retry-After.

    Raises:
        AssertionError: a job was lost or edited twice, or a refusal had another status than 429.
    """
    print(f"{CALLERS} callers at once, {PLACES} places, edits of {SECONDS} s on a device that sleeps.\n")
    print("| callers | taken | done | refused with 429 | refused otherwise | lost | edited twice |")
    print("|---|---|---|---|---|---|---|")
    for name, is_patient in (("ask once", False), ("obey Retry-After", True)):
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(models, Path(folder), QWEN_EDIT_QUEUE=str(PLACES)) as server,
        ):
            told = asyncio.run(_run(server.port, is_patient=is_patient))
            code = server.worker.terminate()
            edited = Counter(event["job"] for event in server.worker.events("edited"))
        done = sum(end == "COMPLETED" for end in told.ends.values())
        lost = len(told.ends) - sum(edited[job] > 0 and told.ends[job] == "COMPLETED" for job in told.ends)
        twice = sum(count > 1 for count in edited.values())
        refused, otherwise = told.refused[429], told.refused.total() - told.refused[429]
        print(f"| {name} | {len(told.ends)} | {done} | {refused} | {otherwise} | {lost} | {twice} |", flush=True)
        assert lost == twice == otherwise == code == 0, (lost, twice, told.refused, code)
        assert edited.keys() == told.ends.keys(), "an edit was done that nobody was told of"
        assert not is_patient or done == CALLERS, "a patient caller went without"


async def _run(port: int, *, is_patient: bool) -> Told:
    told = Told({}, Counter())
    job = edit(SECONDS)
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(_caller(port, job, told, is_patient=is_patient) for _ in range(CALLERS)))
    return told


async def _caller(port: int, job: Mapping[str, Any], told: Told, *, is_patient: bool) -> None:
    while (reply := await ask(port, "/run", job, "POST")).status != 200:
        told.refused[reply.status] += 1
        if not is_patient:
            return
        await asyncio.sleep(int(reply.headers["retry-after"]))
    job_id = reply.json()["id"]
    assert job_id not in told.ends, "two callers were given one job"
    told.ends[job_id] = "IN_QUEUE"
    while told.ends[job_id] in ("IN_QUEUE", "IN_PROGRESS"):
        told.ends[job_id] = (await ask(port, f"/status-sync/{job_id}")).json()["status"]
