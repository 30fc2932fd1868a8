"""The one client for addresses that somebody else names: https, to public addresses alone, by a deadline.

What goes wrong is told in words that follow "is", so that each caller says of what field: "a URL at a.test, which …".
"""

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

from qwen_edit.public_addresses import Deadline, Pinned, is_public

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

_HEADERS = (
    ("User-Agent", "qwen-edit"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)


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


class HttpsError(Exception):
    """No file came. `str()` follows "is": "a URL at a.test, which answered with status 404, expected 200"."""


class AddressError(HttpsError):
    """It is not a URL that is called, or it does not lead to a public address."""


class AnswerError(HttpsError):
    """The server cannot be reached, is too slow, or answers something else than 200 and a file."""


class LengthError(HttpsError):
    """The file has more bytes than are accepted."""


def get(
    url: str,
    sink: Callable[[bytes], object],
    *,
    limit: int,
    seconds: float,
    accept: str = "*/*",
    network: Network | None = None,
) -> None:
    """Stream the file behind a URL, whatever is in it, to a sink.

    The URL is https, on any port: storage of one's own is often not on 443, and nothing is sent before the server
    has shown a certificate for its name. It has no user name, and a host in ASCII. Each host on the way, through at
    most `MAX_REDIRECTS`, is looked up once; all its addresses have to be public, and only these are connected to.
    Proxies, cookies and passwords of the environment are not used.

    Args:
        sink: takes the file, a piece at a time; some pieces may have come before an error is raised.
        limit: bytes of the file, which is asked for, and accepted, without compression only.
        seconds: for all of it, from the first look-up to the last byte.
        accept: the media types that are preferred, as in HTTP's `Accept`.
        network: the system's resolver and certificates where left out.

    Raises:
        AddressError: not such a URL, or one that does not lead to a public address.
        AnswerError: the server cannot be reached, is too slow, or answers something else than 200 and a file.
        LengthError: more than `limit` bytes.
    """
    network = network or Network(resolve, is_public, _tls())
    deadline = Deadline.after(seconds)
    link = _parse(url, "a URL")
    first = who = f"a URL at {link.host}, which"
    for _ in range(MAX_REDIRECTS + 1):
        with _explained(who, seconds):
            addresses = _public_addresses(link, who, network, deadline)
            with _answer(link, accept, Pinned(addresses, deadline), network.tls) as response:
                location = _location(response)
                if location is None:
                    return _stream(response, sink, limit, who)
        link = _parse(location, f"{first} redirects to a URL", link.text)
        who = f"{first} redirects to a host that"
    raise AnswerError(f"{first} redirects more than {MAX_REDIRECTS} times")


def check(url: str) -> None:
    """Look at a URL without calling it.

    Raises:
        AddressError: `get` and `post` would not call it.
    """
    _parse(url, "a URL")


def post(url: str, body: bytes, content_type: str, *, seconds: float, network: Network | None = None) -> None:
    """Send a body to a URL, by the rules of `get`; a redirect is not followed.

    Args:
        seconds: for all of it, from the look-up to the answer's head.

    Raises:
        AddressError: not such a URL, or one that does not lead to a public address.
        AnswerError: the server cannot be reached, is too slow, or answers something else than 200.
    """
    network = network or Network(resolve, is_public, _tls())
    deadline = Deadline.after(seconds)
    link = _parse(url, "a URL")
    who = f"a URL at {link.host}, which"
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
    with _explained(who, seconds):
        pinned = Pinned(_public_addresses(link, who, network, deadline), deadline)
        with _answer(link, "*/*", pinned, network.tls, ("POST", headers, body)) as response:
            if response.status != 200:
                raise AnswerError(f"{who} answered with status {response.status}, expected 200")


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
        raise AddressError(f"{what} of {len(text):,} characters, expected at most {MAX_URL:,}")
    if not text.isprintable() or "\\" in text:
        raise AddressError(f"{what} with a backslash or an unprintable character, {_EXPECTED}")
    try:
        text = urljoin(base, text)
        parts = urlsplit(text)
    except ValueError:
        # Without the cause: its message repeats parts of the URL.
        raise AddressError(f"{what} that cannot be read, {_EXPECTED}") from None
    if parts.scheme != "https":
        raise AddressError(f"{what} that does not begin with https://, {_EXPECTED}")
    host, port = _host_and_port(parts.netloc, what)
    target = quote(parts.path or "/", _KEPT) + (f"?{quote(parts.query, _KEPT)}" if parts.query else "")
    return _Link(text, host, port, target)


def _host_and_port(authority: str, what: str) -> tuple[str, int]:
    if not authority:
        raise AddressError(f"{what} without a host, {_EXPECTED}")
    if "@" in authority:
        raise AddressError(f"{what} with a user name or a password, {_EXPECTED}")
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not _is_host(match["host"]):
        raise AddressError(
            f"{what} whose host is unusual, expected a domain name in ASCII (xn--… for others), "
            "four decimal numbers, or an IPv6 address in brackets, and perhaps a port"
        )
    port = int(match["port"] or 443)
    if not 1 <= port <= 65535:
        raise AddressError(f"{what} with port {port}, expected 1 to 65535")
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
        raise AddressError(f"{who} does not lead to a public address")
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
def _answer(
    link: _Link,
    accept: str,
    pinned: Pinned,
    tls: ssl.SSLContext,
    sent: tuple[str, list[tuple[str, str]], bytes | None] = ("GET", [], None),
) -> Iterator[httpcore2.Response]:
    method, more, body = sent
    url = httpcore2.URL(scheme="https", host=link.host, port=link.port, target=link.target)
    headers = [("Host", link.authority), ("Accept", accept), *_HEADERS, *more]
    connection = httpcore2.HTTPConnection(url.origin, tls, network_backend=pinned)
    with connection, connection.stream(method, url, headers=headers, content=body) as response:
        yield response


def _location(response: httpcore2.Response) -> str | None:
    location = _header(response, b"location")
    return location if location and response.status in _REDIRECTS else None


def _header(response: httpcore2.Response, name: bytes) -> str:
    values = (value for key, value in response.headers if key.lower() == name)
    return next(values, b"").decode("utf-8", "replace").strip()


def _stream(response: httpcore2.Response, sink: Callable[[bytes], object], limit: int, who: str) -> None:
    if response.status != 200:
        raise AnswerError(f"{who} answered with status {response.status}, expected 200")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise AnswerError(f"{who} sends a compressed answer, expected the file as it is")
    _refuse_too_many_bytes(int(_header(response, b"content-length") or 0), limit, who)
    size = 0
    for chunk in response.iter_stream():
        size += len(chunk)
        _refuse_too_many_bytes(size, limit, who)
        sink(chunk)


def _refuse_too_many_bytes(size: int, limit: int, who: str) -> None:
    if size > limit:
        raise LengthError(f"{who} sends a file of at least {size:,} bytes, expected at most {limit:,}")


@contextmanager
def _explained(who: str, seconds: float) -> Iterator[None]:
    try:
        yield
    except (TimeoutError, httpcore2.TimeoutException) as error:
        raise AnswerError(f"{who} did not send the file within {seconds:g} seconds") from error
    except httpcore2.ConnectError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise AnswerError(f"{who} has no valid certificate for its name") from error
        raise AnswerError(f"{who} cannot be reached over https") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise AnswerError(f"{who} broke the connection off or does not keep to HTTP") from error


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpcore2.default_ssl_context()
