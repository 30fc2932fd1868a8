"""JSON with pictures in it, written around their base64: no picture is copied whole, and none holds up the process."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LONG = 64 * 1024
"""Characters from which on a string is a picture in base64, and not one of JSON's own."""

PIECE = 256 * 1024
"""Bytes that are written at once."""


class Document(Response):
    """An answer of JSON."""

    media_type = "application/json"

    def __init__(self, document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._parts = parts_of(document)
        size = sum(map(len, self._parts))
        super().__init__(None, status, {**(headers or {}), "content-length": str(size)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Send it piece by piece."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in pieces_of(self._parts):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def parts_of(document: object) -> Sequence[str]:
    """The ASCII text of a document, in parts whose long ones are its pictures themselves.

    Args:
        document: of JSON's types. Each string of at least `LONG` characters is base64.
    """
    marker, pictures = secrets.token_hex(16), list[str]()
    text = json.dumps(_with_markers(document, marker, pictures))
    parts = text.split(marker)
    return [part for number, part in enumerate(parts) for part in (part, *pictures[number : number + 1])]


def pieces_of(parts: Sequence[str]) -> Iterator[bytes]:
    """The bytes of a text in parts, at most `PIECE` of them at once."""
    for part in parts:
        for start in range(0, len(part), PIECE):
            yield part[start : start + PIECE].encode("ascii")


def _with_markers(value: object, marker: str, pictures: list[str]) -> Any:  # noqa: ANN401 - JSON
    match value:
        case str() if len(value) >= LONG:
            pictures.append(value)
            return marker
        case Mapping():
            return {name: _with_markers(one, marker, pictures) for name, one in value.items()}
        case list() | tuple():
            return [_with_markers(one, marker, pictures) for one in value]
    return value
