"""The page at `/`: one file, and the headers that hold it to itself."""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType


@dataclass(frozen=True)
class Page:
    """What a door answers with: the file's bytes, and all headers that belong to them."""

    body: bytes
    headers: Mapping[str, str]


@cache
def load() -> Page:
    """Read the page; its policy lets a browser run its one script and its one style, by their hashes.

    Raises:
        ValueError: the file has no script or no style, or more than one.
    """
    body = files(__name__).joinpath("page.html").read_bytes()
    return Page(body, MappingProxyType(_headers(body)))


def _headers(body: bytes) -> dict[str, str]:
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _policy(body),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(self)",
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }


def _policy(body: bytes) -> str:
    rules = {
        "default-src": "'none'",
        "script-src": _source(body, "script"),
        "style-src": _source(body, "style"),
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return "; ".join(f"{rule} {sources}" for rule, sources in rules.items())


def _source(body: bytes, tag: str) -> str:
    """The hash that allows the one element of this tag, as in Content Security Policy Level 3, section 2.3.1."""
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>".encode(), body, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"page.html has {len(found)} {tag} elements, expected 1")
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"
