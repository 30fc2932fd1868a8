"""Who may ask: anybody, or whoever has the key."""

import hmac
from collections.abc import Iterable

_SCHEME = b"bearer "


def is_allowed(headers: Iterable[tuple[bytes, bytes]], key: str | None) -> bool:
    """Whether a request's headers have the key: `Authorization: Bearer KEY`, the bare key there, or `X-API-Key`.

    RunPod's own examples send the bare key; its load balancer takes `Authorization` for itself, hence the other name.

    Args:
        headers: names in lower case, and values.
        key: ASCII; None lets everybody in.
    """
    if key is None:
        return True
    wanted = key.encode("ascii")
    found = (_bare(value) for name, value in headers if name in (b"authorization", b"x-api-key"))
    # In constant time, so that an answer's time says nothing of the key.
    return any(hmac.compare_digest(one, wanted) for one in found)


def _bare(value: bytes) -> bytes:
    value = value.strip()
    return value[len(_SCHEME) :].strip() if value[: len(_SCHEME)].lower() == _SCHEME else value
