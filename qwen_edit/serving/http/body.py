"""A request's body, read whole within bounds of bytes and time before anything else sees it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MAX_BODY = 30_000_000
"""Bytes: what RunPod's load balancer takes (its documentation of load-balancing endpoints)."""

MOST_BODIES, MOST_BYTES = 256, 512_000_000
"""Bodies on their way at once, and the bytes of them that are here. A body that is slow holds next to none of these."""

SILENT_S, WHOLE_S = 15.0, 120.0
"""Seconds between two parts of a body, and for all of it."""

DRAIN_BYTES, DRAIN_S = 1_000_000, 2.0
"""What is still read of a body that was refused: a client that is cut off while it sends does not see the answer."""


class BodyError(Exception):
    """A body that is not taken. `str()` is a sentence for the caller."""

    def __init__(self, status: int, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


class GoneError(Exception):
    """The caller has left."""


@dataclass
class Limits:
    """Seconds, which tests shorten."""

    silent_s: float = SILENT_S
    whole_s: float = WHOLE_S
    drain_s: float = DRAIN_S


class Uploads:
    """The bodies on their way to this process."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._bodies = 0
        self._bytes = 0

    async def read(self, receive: Receive, declared: int | None) -> bytes:
        """All of a body.

        Args:
            declared: its length, where the head says one.

        Raises:
            BodyError: it is too long, too slow, or too many are on their way.
            GoneError: the caller left before its end.
        """
        if declared is not None and declared > MAX_BODY:
            raise _too_long()
        with self._place() as parts:
            try:
                async with asyncio.timeout(self.limits.whole_s):
                    await self._whole(receive, parts)
                    return b"".join(parts)
            except TimeoutError:
                raise BodyError(408, "invalid_request", "the body came too slowly") from None

    async def drain(self, receive: Receive) -> None:
        """Read on for a moment after a refusal."""
        size = 0
        try:
            async with asyncio.timeout(self.limits.drain_s):
                while size < DRAIN_BYTES:
                    message = await receive()
                    size += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return
        except TimeoutError:
            return

    async def _whole(self, receive: Receive, parts: list[bytes]) -> None:
        size, more = 0, True
        while more:
            async with asyncio.timeout(self.limits.silent_s):
                message = await receive()
            if message["type"] != "http.request":
                raise GoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > MAX_BODY:
                raise _too_long()
            if self._bytes + len(part) > MOST_BYTES:
                raise _too_many()
            parts.append(part)
            self._bytes += len(part)

    @contextmanager
    def _place(self) -> Iterator[list[bytes]]:
        """A place for the parts of one body."""
        if self._bodies >= MOST_BODIES:
            raise _too_many()
        parts: list[bytes] = []
        self._bodies += 1
        try:
            yield parts
        finally:
            self._bodies -= 1
            self._bytes -= sum(map(len, parts))


def _too_many() -> BodyError:
    return BodyError(503, "overloaded", "too many uploads are on their way; send it again in a moment")


def _too_long() -> BodyError:
    return BodyError(413, "image_too_large", f"the body is too long, expected at most {MAX_BODY:,} bytes")
