"""A client of few words: HTTP/1.1 over a connection that is kept, and edits one after another."""

import asyncio
import base64
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image

LOOPBACK = "127.0.0.1"
PHOTO = Path(__file__).parents[2] / "tests" / "photos" / "chelsea.png"
STEPS = 8
IN_FLIGHT = 2
"""Edits at once of one client, so that the device has the next one as it ends one."""


@dataclass(frozen=True)
class Reply:
    """An answer. The names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(self.body)


class Connection:
    """One connection to a server on loopback."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection(LOOPBACK, port))

    async def ask(self, path: str, document: object = None, method: str = "GET") -> Reply:
        """Ask, with a document as JSON, and wait for the whole answer."""
        body = b"" if document is None else json.dumps(document).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-length: {len(body)}\r\n"
        self.writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        size = int(headers.get("content-length", 0))
        return Reply(int(first.split()[1]), headers, await self.reader.readexactly(size))

    def close(self) -> None:
        self.writer.close()


async def ask(port: int, path: str, document: object = None, method: str = "GET") -> Reply:
    """Ask once, over a connection of its own."""
    connection = await Connection.open(port)
    try:
        return await connection.ask(path, document, method)
    finally:
        connection.close()


def edit(seconds: float = 0.0, side: int = 256) -> dict[str, Any]:
    """A good job. On the fake device it takes so many seconds."""
    file = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.convert("RGB").save(file, "JPEG", quality=90)
    image = base64.b64encode(file.getvalue()).decode("ascii")
    fields = {"image": image, "prompt": f"pace {seconds / STEPS}", "width": side, "height": side, "seed": 1}
    return {"input": fields}


async def seconds_an_edit(port: int, number: int, job: Mapping[str, Any]) -> float:
    """Seconds that each of a number of edits takes where the device never waits for one.

    Raises:
        AssertionError: one did not end well.
    """
    left = iter(range(number))

    async def edits() -> None:
        for _ in left:
            state = (await ask(port, "/runsync?wait=300000", job, "POST")).json()
            assert state.get("status") == "COMPLETED", str(state)[:300]

    began = time.monotonic()
    await asyncio.gather(*(edits() for _ in range(IN_FLIGHT)))
    return (time.monotonic() - began) / number


def resident_mb(pid: int) -> float:
    """Megabytes of memory that a process has."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6
