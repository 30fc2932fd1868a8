"""A body that was read whole → the fields in it: JSON, a form with files, or a file alone."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import MultipartParseError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser
from starlette.requests import Request

from qwen_edit.errors import InvalidRequest
from qwen_edit.serving.http.body import MAX_BODY

FILES = ("image", "image[]")
"""The parts that hold pictures: OpenAI's clients send the first for one and the second for a list."""

MOST_FILES, MOST_FIELDS = 16, 100
FEED = 256 * 1024
"""Bytes that are parsed before others have their turn."""


@dataclass(frozen=True)
class Form:
    """Texts and files of a form. A name that came several times has a list."""

    fields: dict[str, Any]
    images: tuple[bytes, ...] = field(default=(), repr=False)


class _InMemory(MultiPartParser):
    """Starlette's, which else writes files of more than a megabyte to the disk."""

    spool_max_size = MAX_BODY


async def read_json(request: Request) -> object:
    """The JSON of a body, whatever its type is said to be: `curl -d` says that it is a form.

    Raises:
        InvalidRequest: it is not JSON.
    """
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not JSON"
        raise InvalidRequest(f"the body is {reason}, expected a JSON object") from None


def is_form(request: Request) -> bool:
    """Whether the head says that a form comes."""
    return _type_of(request) in ("multipart/form-data", "application/x-www-form-urlencoded")


def is_picture(request: Request) -> bool:
    """Whether the head says that a file comes."""
    return _type_of(request).startswith("image/") or _type_of(request) == "application/octet-stream"


async def read_form(request: Request) -> Form:
    """The fields of a form; its pictures are those of the parts in `FILES`.

    Raises:
        InvalidRequest: it cannot be read, or has a file elsewhere, or too many parts.
    """
    try:
        items = (await _parser(request).parse()).multi_items()
    except (MultiPartException, MultipartParseError, HTTPException, ValueError, KeyError) as error:
        told = error.message if isinstance(error, MultiPartException) else "it cannot be read"
        raise InvalidRequest(f"the form is wrong: {told}"[:200]) from None
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    for name, value in items:
        if not isinstance(value, UploadFile):
            fields[name] = _added(fields, name, value)
        elif name in FILES:
            images.append(await value.read())
        else:
            raise InvalidRequest(f"{name[:40]} is a file, expected files in image or image[] alone", name[:40])
    return Form(fields, tuple(images))


def _parser(request: Request) -> MultiPartParser | FormParser:
    if _type_of(request) != "multipart/form-data":
        return FormParser(request.headers, _fed(request))
    return _InMemory(
        request.headers, _fed(request), max_files=MOST_FILES, max_fields=MOST_FIELDS, max_part_size=MAX_BODY
    )


async def _fed(request: Request) -> AsyncGenerator[bytes, None]:
    body = await request.body()
    for start in range(0, len(body), FEED):
        yield body[start : start + FEED]
    yield b""


def _added(fields: dict[str, Any], name: str, value: str) -> object:
    if name not in fields:
        return value
    before = fields[name]
    return [*before, value] if isinstance(before, list) else [before, value]


def _type_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
