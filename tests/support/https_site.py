"""A TLS server on loopback that answers as it is told, and a network in which nothing but it can be reached."""

import ipaddress
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import trustme
from typing_extensions import override

from qwen_edit.https import Network
from qwen_edit.pictures.web import get_picture
from qwen_edit.public_addresses import is_public
from tests.support.patience import PATIENCE

LOOPBACK = "127.0.0.1"
IPV6 = "2001:db8::1"
NAMES: Mapping[str, Sequence[str]] = {
    "pictures.test": [LOOPBACK],
    "other.test": [LOOPBACK],
    "inside.test": ["10.0.0.1"],
    "mixed.test": [LOOPBACK, "10.0.0.1"],
    "xn--bcher-kva.test": [LOOPBACK],
}

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert(*NAMES, LOOPBACK, IPV6)

Answer = Callable[[ssl.SSLSocket, str], None]
"""What the server does on a connection, given the head of the request."""

_connections: list[object] | None = None
_refusing = False


class Site(socketserver.ThreadingTCPServer):
    """Serves every name of `NAMES`. Closing it waits for the connections to end."""

    def __init__(self, answer: Answer, certificate: trustme.LeafCert = CERTIFICATE) -> None:
        super().__init__((LOOPBACK, 0), socketserver.BaseRequestHandler)
        self.port: int = self.server_address[1]
        self.heads: list[str] = []
        self.answer = answer
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._tls)

    @override
    def finish_request(self, request: Any, client_address: object) -> None:
        request.settimeout(PATIENCE)
        request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError), self._tls.wrap_socket(request, server_side=True) as connection:
            head = _head(connection)
            self.heads.append(head)
            self.answer(connection, head)
            connection.unwrap()


def _head(connection: ssl.SSLSocket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (more := connection.recv(65536)):
            break
        head += more
    return head.decode("ascii")


@contextmanager
def site(answer: Answer, certificate: trustme.LeafCert = CERTIFICATE) -> Iterator[Site]:
    with Site(answer, certificate) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def sends(*parts: bytes) -> Answer:
    """An answer of these bytes."""
    return lambda connection, _: connection.sendall(b"".join(parts))


def file_answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return file_answer(b"", f"Location: {location}", status=status)


def resolve(host: str, _: int) -> Sequence[str]:
    """The answer of a name server that knows `NAMES` alone; an address is its own answer."""
    with suppress(ValueError):
        return [str(ipaddress.ip_address(host))]
    if host not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return NAMES[host]


def network(resolve: Callable[[str, int], Sequence[str]] = resolve, reachable: Sequence[str] = (LOOPBACK,)) -> Network:
    """The rules of production, but for a few addresses that count as public and the authority that is trusted."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(tls)
    return Network(resolve, lambda address: address in reachable or is_public(address), tls)


def download(url: str, limit: int = 1000, seconds: float = PATIENCE, through: Network | None = None) -> bytes:
    return get_picture(url, limit, seconds, through or network())


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and _connections is not None:
        _connections.append(arguments[1])
        if _refusing:
            raise ConnectionRefusedError


sys.addaudithook(_audit)


@contextmanager
def watched(*, refusing: bool = False) -> Iterator[list[object]]:
    """The addresses that this process asks the system to connect to; `refusing` keeps it from doing so."""
    global _connections, _refusing
    _connections, _refusing = [], refusing
    try:
        yield _connections
    finally:
        _connections, _refusing = None, False
