import gzip
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edit import public_addresses
from qwen_edit.errors import EditError, ImageTooLarge, InvalidImage
from tests.support.clock import Clock
from tests.support.https_site import (
    IPV6,
    LOOPBACK,
    Site,
    download,
    file_answer,
    network,
    redirect,
    sends,
    site,
    watched,
)
from tests.support.patience import PATIENCE

BODY = bytes(range(256))


def test_a_file_arrives_byte_for_byte_and_is_asked_for_without_fragment_and_compression() -> None:
    with site(sends(file_answer(BODY))) as server:
        assert download(f" https://Pictures.test:{server.port}/a b/ü|%41?x=1&y=[é]#part\n") == BODY
    (head,) = server.heads
    assert head.startswith("GET /a%20b/%C3%BC|%41?x=1&y=[%C3%A9] HTTP/1.1\r\n")
    assert f"Host: pictures.test:{server.port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert not any(name in head.lower() for name in ("cookie", "authorization", "referer", "range"))


@pytest.mark.parametrize("host", [LOOPBACK, "xn--bcher-kva.test"])
def test_a_url_may_hold_an_address_or_a_name_in_its_ascii_form(host: str) -> None:
    with site(sends(file_answer(BODY))) as server:
        assert download(f"https://{host}:{server.port}") == BODY
    assert server.heads[0].startswith(f"GET / HTTP/1.1\r\nHost: {host}:{server.port}\r\n")


def test_an_address_of_ipv6_is_asked_for_in_brackets_and_shows_a_certificate_for_itself() -> None:
    with site(sends(file_answer(BODY))) as server:
        url = f"https://[{IPV6.upper()}]:{server.port}/"
        assert download(url, through=network(lambda *_: [LOOPBACK])) == BODY
    assert f"Host: [{IPV6}]:{server.port}\r\n" in server.heads[0]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde",
        b"HTTP/1.0 200 OK\r\n\r\nabcde",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + file_answer(b"abcde"),
        file_answer(b"abcde", "Content-Encoding: identity"),
        file_answer(b"abcde") + b"more than was announced",
    ],
)
def test_a_file_arrives_however_http_marks_its_end(answer: bytes) -> None:
    with site(sends(answer)) as server:
        assert download(f"https://pictures.test:{server.port}/") == b"abcde"


def test_a_file_of_exactly_the_limit_is_accepted() -> None:
    with site(sends(file_answer(BODY))) as server:
        assert download(f"https://pictures.test:{server.port}/", limit=256) == BODY


@pytest.mark.parametrize("length", [257, 10**18])
def test_a_file_that_announces_more_than_the_limit_is_not_read(length: int) -> None:
    with (
        site(sends(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)) as server,
        pytest.raises(ImageTooLarge, match=rf"pictures\.test, which sends .* {length:,} bytes, expected at most 256$"),
    ):
        download(f"https://pictures.test:{server.port}/?secret", limit=256)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_an_endless_file_is_dropped_at_the_limit(head: bytes) -> None:
    dropped = threading.Event()

    def answer(connection: ssl.SSLSocket, _: str) -> None:
        connection.sendall(head)
        try:
            while True:
                connection.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        except OSError:
            dropped.set()

    with site(answer) as server, pytest.raises(ImageTooLarge, match=r"at least .* expected at most 100,000$"):
        download(f"https://pictures.test:{server.port}/", limit=100_000)
    assert dropped.is_set()


@pytest.mark.parametrize("header", ["Content-Encoding: gzip", "content-encoding: br, gzip", "Transfer-Encoding: gzip"])
def test_a_compressed_answer_is_refused_and_not_unpacked(header: str) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with site(sends(file_answer(bomb, header))) as server, pytest.raises(InvalidImage, match=r"compressed|HTTP"):
        download(f"https://pictures.test:{server.port}/", limit=100_000)


@pytest.mark.parametrize("status", [204, 206, 300, 302, 304, 401, 403, 404, 410, 429, 500, 503])
def test_another_status_than_200_is_named(status: int) -> None:
    answer = f"HTTP/1.1 {status} secret\r\nContent-Length: 0\r\n\r\n".encode()
    with site(sends(answer)) as server, pytest.raises(InvalidImage) as caught:
        download(f"https://pictures.test:{server.port}/secret?secret#secret")
    assert caught.value.sentence == (
        f"image is a URL at pictures.test, which answered with status {status}, expected 200"
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 200,
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
def test_an_answer_that_is_not_http_or_stops_short_is_refused(answer: bytes) -> None:
    with site(sends(answer)) as server, pytest.raises(InvalidImage) as caught:
        download(f"https://pictures.test:{server.port}/?secret")
    assert caught.value.sentence == (
        "image is a URL at pictures.test, which broke the connection off or does not keep to HTTP"
    )


HEADS = [
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: ",
]


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    with site(sends()) as server:
        yield server


@settings(max_examples=100)
@given(head=st.sampled_from(HEADS), rest=st.binary(max_size=60), end=st.sampled_from([b"", b"\r\n\r\n"]))
def test_any_bytes_of_a_server_give_bytes_or_a_sentence(server: Site, head: bytes, rest: bytes, end: bytes) -> None:
    server.answer = sends(head, rest, end)
    with watched() as connections:
        try:
            assert isinstance(download(f"https://pictures.test:{server.port}/"), bytes)
        except EditError as error:
            assert error.sentence.startswith("image is a URL at pictures.test, which ")  # noqa: PT017
            assert error.sentence.isprintable()  # noqa: PT017
    assert set(connections) <= {(LOOPBACK, server.port), (LOOPBACK, 443)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which a deadline is kept."""
    clock = Clock()
    monkeypatch.setattr(public_addresses, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", b"a"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n"),
    ],
    ids=["headers", "hints", "body", "trailers"],
)
def test_a_server_that_drips_is_left_at_the_deadline(head: bytes, drop: bytes, clock: Clock) -> None:
    def answer(connection: ssl.SSLSocket, _: str) -> None:
        connection.sendall(head)
        for _second in range(1000):
            clock.now += 1
            connection.sendall(drop)  # a record of its own, for which the client has to ask

    with site(answer) as server, pytest.raises(InvalidImage) as caught:
        download(f"https://pictures.test:{server.port}/?secret", seconds=PATIENCE)
    assert caught.value.sentence == "image is a URL at pictures.test, which did not send the file within 120 seconds"


def test_slow_redirects_share_one_deadline(clock: Clock) -> None:
    def answer(connection: ssl.SSLSocket, head: str) -> None:
        clock.now += 0.4 * PATIENCE
        last = head.startswith("GET /xxx ")
        connection.sendall(file_answer(BODY) if last else redirect(head.split()[1] + "x"))

    with site(answer) as server, pytest.raises(InvalidImage, match=r"redirects to a host that did not send the file"):
        download(f"https://pictures.test:{server.port}/", seconds=PATIENCE)


def test_a_server_that_is_silent_is_left_at_the_deadline() -> None:
    def is_silent(connection: ssl.SSLSocket, _: str) -> None:
        connection.recv(1)

    with site(is_silent) as server, pytest.raises(InvalidImage) as caught:
        download(f"https://pictures.test:{server.port}/?secret", seconds=0.3)
    assert caught.value.sentence == "image is a URL at pictures.test, which did not send the file within 0.3 seconds"


def test_a_server_that_never_shakes_hands_is_left_at_the_deadline() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:  # the system connects, and nobody accepts
        url = f"https://pictures.test:{server.getsockname()[1]}/"
        with pytest.raises(InvalidImage, match=r"did not send the file within 0\.3 seconds$"):
            download(url, seconds=0.3)


def test_a_name_server_that_keeps_silent_is_left_at_the_deadline() -> None:
    left = threading.Event()

    def resolve(*_: object) -> Sequence[str]:
        left.wait(PATIENCE)
        return ["10.0.0.1"]

    with pytest.raises(InvalidImage, match=r"pictures\.test, which did not send the file within 0\.2 seconds$"):
        download("https://pictures.test/", seconds=0.2, through=network(resolve))
    left.set()
