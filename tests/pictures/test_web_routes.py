import itertools
import socket
import ssl
import threading

import pytest
import trustme

from qwen_edit.errors import InvalidImage, InvalidRequest
from tests.support.https_site import LOOPBACK, download, file_answer, network, redirect, sends, site, watched

BODY = bytes(range(256))


def test_a_server_that_does_not_speak_tls_cannot_be_reached() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(file_answer(BODY))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InvalidImage, match=r"pictures\.test, which cannot be reached over https$"):
            download(f"https://pictures.test:{server.getsockname()[1]}/")
        thread.join()


def test_a_closed_port_cannot_be_reached() -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))  # taken, so that nobody else listens there, and not listened on
        url = f"https://pictures.test:{server.getsockname()[1]}/?secret"
        with pytest.raises(InvalidImage, match=r"pictures\.test, which cannot be reached over https$"):
            download(url)


def test_the_next_address_is_tried_where_one_refuses() -> None:
    through = network(lambda *_: ["127.0.0.3", LOOPBACK], reachable=["127.0.0.3", LOOPBACK])
    with site(sends(file_answer(BODY))) as server, watched() as connections:
        assert download(f"https://pictures.test:{server.port}/", through=through) == BODY
    assert connections == [("127.0.0.3", server.port), (LOOPBACK, server.port)]


def test_a_certificate_of_an_unknown_authority_is_refused() -> None:
    with (
        site(sends(file_answer(BODY)), trustme.CA().issue_cert("pictures.test")) as server,
        pytest.raises(InvalidImage, match=r"pictures\.test, which has no valid certificate for its name$"),
    ):
        download(f"https://pictures.test:{server.port}/")
    assert server.heads == []


def test_a_certificate_of_another_name_is_refused() -> None:
    through = network(lambda *_: [LOOPBACK])
    with (
        site(sends(file_answer(BODY))) as server,
        pytest.raises(InvalidImage, match=r"unnamed\.test, which has no valid certificate for its name$"),
    ):
        download(f"https://unnamed.test:{server.port}/", through=through)
    assert server.heads == []


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_followed_to_a_relative_place_and_to_another_host(status: str) -> None:
    def answer(connection: ssl.SSLSocket, head: str) -> None:
        places = {"/a/b": "../c?d", "/c?d": f"https://other.test:{server.port}/last", "/last": ""}
        place = places[head.split()[1]]
        connection.sendall(redirect(place, status) if place else file_answer(BODY))

    with site(answer) as server:
        assert download(f"https://pictures.test:{server.port}/a/b") == BODY
    assert [head.split()[4].partition(":")[0] for head in server.heads] == ["pictures.test"] * 2 + ["other.test"]


@pytest.mark.parametrize(("redirects", "arrives"), [(3, True), (4, False)])
def test_three_redirects_are_followed_and_no_more(redirects: int, arrives: bool) -> None:
    count = itertools.count(1)

    def answer(connection: ssl.SSLSocket, _: str) -> None:
        connection.sendall(redirect("/") if next(count) <= redirects else file_answer(BODY))

    with site(answer) as server:
        if arrives:
            assert download(f"https://pictures.test:{server.port}/") == BODY
        else:
            with pytest.raises(InvalidImage, match=r"pictures\.test, which redirects more than 3 times$"):
                download(f"https://pictures.test:{server.port}/")
    assert len(server.heads) == 4


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("https://inside.test/secret", "a host that does not lead to a public address"),
        ("https://mixed.test/secret", "a host that does not lead to a public address"),
        ("https://nowhere.test/secret", "a host that does not lead to a public address"),
        ("https://127.0.0.2/", "a host that does not lead to a public address"),
        ("//169.254.169.254/secret", "a host that does not lead to a public address"),
        ("https://[::1]/", "a host that does not lead to a public address"),
        ("http://pictures.test/secret", "a URL that does not begin with https://, expected https://host/path"),
        ("file:///etc/secret", "a URL that does not begin with https://, expected https://host/path"),
        ("https://user:secret@pictures.test/", "a URL with a user name or a password, expected https://host/path"),
        ("https://[secret/", "a URL that cannot be read, expected https://host/path"),
    ],
)
def test_a_redirect_to_anything_else_than_a_public_https_url_is_refused(place: str, complaint: str) -> None:
    with site(sends(redirect(place))) as server, watched() as connections, pytest.raises(InvalidRequest) as caught:
        download(f"https://pictures.test:{server.port}/?secret")
    assert caught.value.sentence == f"image is a URL at pictures.test, which redirects to {complaint}"
    assert connections == [(LOOPBACK, server.port)]


def test_each_host_is_looked_up_once_and_the_connection_goes_to_that_answer() -> None:
    answers = iter([[LOOPBACK], ["10.0.0.1"]])
    through = network(lambda *_: next(answers))
    with site(sends(file_answer(BODY))) as server, watched() as connections:
        assert download(f"https://pictures.test:{server.port}/", through=through) == BODY
    assert connections == [(LOOPBACK, server.port)]
    assert next(answers) == ["10.0.0.1"]


def test_an_answer_of_the_name_server_that_changes_before_a_redirect_is_checked_again() -> None:
    answers = iter([[LOOPBACK], ["10.0.0.1"]])
    through = network(lambda *_: next(answers))
    with (
        site(sends(redirect("/again"))) as server,
        watched() as connections,
        pytest.raises(InvalidRequest, match=r"redirects to a host that does not lead to a public address$"),
    ):
        download(f"https://pictures.test:{server.port}/", through=through)
    assert connections == [(LOOPBACK, server.port)]


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_not_used(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.4:9")
    with site(sends(file_answer(BODY))) as server, watched() as connections:
        assert download(f"https://pictures.test:{server.port}/") == BODY
    assert connections == [(LOOPBACK, server.port)]
