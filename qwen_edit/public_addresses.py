"""Which addresses are of the public internet, and connections that lead to given addresses alone, by a given time."""

import ipaddress
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import httpcore2
from typing_extensions import override

_UNICAST_V6 = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6. IPv4 in disguise (mapped, translated by NAT64) and everything local lies outside."""

# Not public, or tunnels to what may not be, but global to `ipaddress` or to some of its versions.
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"))
)


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the public internet that a single host answers on."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _NOT_PUBLIC) or ip.is_multicast:
        return False
    return ip.is_global and (ip.version == 4 or ip in _UNICAST_V6)


@dataclass(frozen=True)
class Deadline:
    """The end of all of the waits that are to take so many seconds together."""

    end: float  # on the monotonic clock

    @classmethod
    def after(cls, seconds: float) -> Self:
        """So many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """Seconds, more than none.

        Raises:
            TimeoutError: it has passed.
        """
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Pinned(httpcore2.NetworkBackend):
    """Connects to the first of these addresses that answers, whatever the host's name leads to by now.

    An address that keeps silent costs its share of what is left until the deadline, not all of it.
    """

    def __init__(self, addresses: Sequence[str], deadline: Deadline) -> None:
        self._addresses = addresses
        self._deadline = deadline

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        *others, last = self._addresses
        for untried, address in zip(range(len(self._addresses), 1, -1), others, strict=True):
            try:
                return self._connect(address, port, self._deadline.left() / untried)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return self._connect(last, port, self._deadline.left())

    def _connect(self, address: str, port: int, timeout: float) -> httpcore2.NetworkStream:
        return _Stream(httpcore2.SyncBackend().connect_tcp(address, port, timeout), self._deadline)


class _Stream(httpcore2.NetworkStream):
    """Waits until the deadline at most. A time-out for each read would let a server drip for ever."""

    def __init__(self, inner: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left())

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left())

    @override
    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    @override
    def close(self) -> None:
        self._inner.close()

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
