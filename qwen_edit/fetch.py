"""Download the picture behind an https URL, from public addresses alone."""

import functools
import ipaddress
import re
import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from qwen_edit import images
from qwen_edit.errors import ImageTooLarge, InvalidImage, InvalidRequest
from qwen_edit.pinned import Deadline, Pinned

MAX_URL = 8192
"""Characters. Presigned URLs with a session token take some two thousand."""

MAX_REDIRECTS = 3

_REDIRECTS = (301, 302, 303, 307, 308)
_EXPECTED = "expected https://host/path"

_AUTHORITY = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{0,5}))?")
_MAX_NAME = 253
"""Characters of a domain name, without the root's dot (RFC 1035, 2.3.4)."""

# No top-level domain begins with a digit, so what does is an address, perhaps in one of the forms of inet_aton.
_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z_-][A-Za-z0-9_-]{0,62}")
_KEPT = string.ascii_letters + string.digits + string.punctuation

_UNICAST_V6 = ipaddress.ip_network("2000::/3")
"""All that is given out of IPv6. IPv4 in disguise (mapped, translated by NAT64) and everything local lies outside."""

# Not public, or tunnels to what may not be, but global to `ipaddress` or to some of its versions.
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20"))
)

_HEADERS = (
    ("User-Agent", "qwen-edit"),
    ("Accept", "image/png, image/jpeg, image/webp, */*;q=0.5"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)


def is_public(address: str) -> bool:
    """Whether an IP address, as text, is one of the public internet that a single host answers on."""
    ip = ipaddress.ip_address(address)
    if any(ip in network for network in _NOT_PUBLIC) or ip.is_multicast:
        return False
    return ip.is_global and (ip.version == 4 or ip in _UNICAST_V6)


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as text.

    Raises:
        OSError: the system's resolver knows none.
    """
    return [str(answer[4][0]) for answer in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Network:
    """How names become addresses, which of these may be called, and who vouches for the servers there."""

    resolve: Callable[[str, int], Sequence[str]]
    is_public: Callable[[str], bool]
    tls: ssl.SSLContext


def fetch(url: str, limit: int = images.MAX_BYTES, seconds: float = 10.0) -> bytes:
    """Download a file, whatever is in it. Whether the operator allows URLs is for the caller to check.

    The URL is https, on any port: storage of one's own is often not on 443, and nothing is sent before the server
    has shown a certificate for its name. It has no user name, and a host in ASCII. Each host on the way, through at
    most `MAX_REDIRECTS`, is looked up once; all its addresses have to be public, and only these are connected to.
    Proxies, cookies and passwords of the environment are not used.

    Args:
        limit: bytes of the file, which is asked for, and accepted, without compression only.
        seconds: for all of it, from the first look-up to the last byte.

    Raises:
        InvalidRequest: not such a URL, or one that does not lead to a public address.
        InvalidImage: the server cannot be reached, is too slow, or answers something else than 200 and a file.
        ImageTooLarge: more than `limit` bytes.
    """
    return download(url, limit, seconds, Network(resolve, is_public, _tls()))


def download(url: str, limit: int, seconds: float, network: Network) -> bytes:
    """`fetch` through a given network."""
    deadline = Deadline.after(seconds)
    link = _parse(url, "image is a URL")
    first = who = f"image is a URL at {link.host}, which"
    for _ in range(MAX_REDIRECTS + 1):
        with _explained(who, seconds):
            addresses = _public_addresses(link, who, network, deadline)
            with _get(link, Pinned(addresses, deadline), network.tls) as response:
                location = _location(response)
                if location is None:
                    return _body(response, limit, who)
        link = _parse(location, f"{first} redirects to a URL", link.text)
        who = f"{first} redirects to a host that"
    raise InvalidImage(f"{first} redirects more than {MAX_REDIRECTS} times")


@dataclass(frozen=True)
class _Link:
    text: str
    host: str  # of an IPv6 address without the brackets
    port: int
    target: str  # path and query, percent-encoded

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def _parse(text: str, what: str, base: str = "") -> _Link:
    text = text.strip()
    if len(text) > MAX_URL:
        raise InvalidRequest(f"{what} of {len(text):,} characters, expected at most {MAX_URL:,}")
    if not text.isprintable() or "\\" in text:
        raise InvalidRequest(f"{what} with a backslash or an unprintable character, {_EXPECTED}")
    try:
        text = urljoin(base, text)
        parts = urlsplit(text)
    except ValueError:
        # Without the cause: its message repeats parts of the URL.
        raise InvalidRequest(f"{what} that cannot be read, {_EXPECTED}") from None
    if parts.scheme != "https":
        raise InvalidRequest(f"{what} that does not begin with https://, {_EXPECTED}")
    host, port = _host_and_port(parts.netloc, what)
    target = quote(parts.path or "/", _KEPT) + (f"?{quote(parts.query, _KEPT)}" if parts.query else "")
    return _Link(text, host, port, target)


def _host_and_port(authority: str, what: str) -> tuple[str, int]:
    if not authority:
        raise InvalidRequest(f"{what} without a host, {_EXPECTED}")
    if "@" in authority:
        raise InvalidRequest(f"{what} with a user name or a password, {_EXPECTED}")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not _is_host(match["host"]):
        raise InvalidRequest(
            f"{what} whose host is unusual, expected a domain name in ASCII (xn--… for others), "
            "four decimal numbers, or an IPv6 address in brackets, and perhaps a port"
        )
    port = int(match["port"] or 443)
    if not 1 <= port <= 65535:
        raise InvalidRequest(f"{what} with port {port}, expected 1 to 65535")
    return match["host"].strip("[]").lower(), port


def _is_host(text: str) -> bool:
    if _NAME.fullmatch(text):
        return len(text) <= _MAX_NAME
    try:
        ipaddress.IPv6Address(text[1:-1]) if text.startswith("[") else ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _public_addresses(link: _Link, who: str, network: Network, deadline: Deadline) -> list[str]:
    addresses = _look_up(link, network, deadline)
    # A name that is unknown reads as one of a private address, or the two would tell what the resolver here knows.
    if not addresses or not all(map(network.is_public, addresses)):
        raise InvalidRequest(f"{who} does not lead to a public address")
    return addresses


def _look_up(link: _Link, network: Network, deadline: Deadline) -> list[str]:
    # The system's resolver takes no time-out, and a daemon is the one thread that an ending process does not wait for.
    answer: Future[Sequence[str]] = Future()

    def look_up() -> None:
        try:
            answer.set_result(network.resolve(link.host, link.port))
        except OSError:
            answer.set_result(())

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    return list(answer.result(deadline.left()))


@contextmanager
def _get(link: _Link, pinned: Pinned, tls: ssl.SSLContext) -> Iterator[httpcore2.Response]:
    url = httpcore2.URL(scheme="https", host=link.host, port=link.port, target=link.target)
    headers = [("Host", link.authority), *_HEADERS]
    connection = httpcore2.HTTPConnection(url.origin, tls, network_backend=pinned)
    with connection, connection.stream("GET", url, headers=headers) as response:
        yield response


def _location(response: httpcore2.Response) -> str | None:
    location = _header(response, b"location")
    return location if location and response.status in _REDIRECTS else None


def _header(response: httpcore2.Response, name: bytes) -> str:
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("utf-8", "replace").strip()


def _body(response: httpcore2.Response, limit: int, who: str) -> bytes:
    if response.status != 200:
        raise InvalidImage(f"{who} answered with status {response.status}, expected 200")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise InvalidImage(f"{who} sends a compressed answer, expected the file as it is")
    _refuse_too_many_bytes(int(_header(response, b"content-length") or 0), limit, who)
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        _refuse_too_many_bytes(len(data), limit, who)
    return bytes(data)


def _refuse_too_many_bytes(size: int, limit: int, who: str) -> None:
    if size > limit:
        raise ImageTooLarge(f"{who} sends a file of at least {size:,} bytes, expected at most {limit:,}")


@contextmanager
def _explained(who: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, httpcore2.TimeoutException) as error:
        raise InvalidImage(f"{who} did not send the file within {seconds:g} seconds") from error
    except httpcore2.ConnectError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise InvalidImage(f"{who} has no valid certificate for its name") from error
        raise InvalidImage(f"{who} cannot be reached over https") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise InvalidImage(f"{who} broke the connection off or does not keep to HTTP") from error


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()
