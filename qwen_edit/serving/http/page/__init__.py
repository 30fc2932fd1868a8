"""The page at `/`: one file; and the headers that hold a page to itself."""

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
    """Read the page."""
    return alone(files(__name__).joinpath("page.html").read_bytes())


def alone(body: bytes) -> Page:
    """A page whose policy lets a browser run its one script and its one style, by their hashes, and nothing else.

    Args:
        body: HTML.

    Raises:
        ValueError: it has more than one script, or more than one style.
    """
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
    """What allows the one element of this tag: its hash, as in Content Security Policy Level 3, section 2.3.1."""
    found = re.findall(rf"<{tag}(?: [^>]*)?>(.*?)</{tag}>".encode(), body, re.DOTALL)
    if len(found) > 1:
        raise ValueError(f"the page has {len(found)} {tag} elements, expected 1")
    if not found:
        return "'none'"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[0]).digest()).decode()}'"
