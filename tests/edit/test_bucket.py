import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest

from qwen_edit.edit.bucket import ATTEMPTS, EXPIRY_S, Bucket, _region
from qwen_edit.errors import Cancelled, InternalError
from qwen_edit.settings import BucketSettings
from tests.support.object_store import BUCKET, ObjectStore, download, object_store
from tests.support.patience import PATIENCE


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def refusal(settings: BucketSettings, read_timeout: float = PATIENCE) -> str:
    with pytest.raises(InternalError) as caught:
        Bucket(settings, read_timeout).upload("folder/0.png", b"picture", "image/png")
    sentence = caught.value.sentence
    for secret in (settings.access_key_id, settings.secret_access_key, settings.endpoint_url, "folder"):
        assert secret not in sentence
    return sentence


@pytest.mark.parametrize("name", ["plain.png", "qwen-edit/job-1_x/0.webp", "a folder/ü & ?#+%.png"])
def test_what_was_uploaded_is_behind_its_address(store: ObjectStore, name: str) -> None:
    data = bytes(range(256)) * 4096

    url = Bucket(store.settings).upload(name, data, "image/webp")

    assert download(url) == (data, "image/webp")
    assert name in store.names()


def test_an_upload_that_is_cancelled_leaves_nothing_in_the_store(store: ObjectStore) -> None:
    asked = iter([False, True])

    with pytest.raises(Cancelled):
        Bucket(store.settings).upload("cancelled.png", b"picture" * 100_000, "image/png", lambda: next(asked, True))

    assert "cancelled.png" not in store.names()


def test_an_address_is_signed_and_expires(store: ObjectStore) -> None:
    url = urlsplit(Bucket(store.settings).upload("0.png", b"picture", "image/png"))

    query = parse_qs(url.query)
    assert query["X-Amz-Expires"] == [str(EXPIRY_S)] == ["86400"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert store.settings.secret_access_key not in url.geturl()


def test_the_bucket_is_part_of_the_path_and_not_of_the_host(store: ObjectStore) -> None:
    endpoint = store.settings.endpoint_url.replace("127.0.0.1", "localhost")

    url = Bucket(store.with_settings(endpoint_url=endpoint)).upload("0.png", b"picture", "image/png")

    assert url.startswith(f"{endpoint}/{BUCKET}/0.png?")


def test_keys_that_the_store_knows_are_taken_where_it_checks_them(store: ObjectStore) -> None:
    with store.checking_keys():
        url = Bucket(store.settings).upload("checked.png", b"picture", "image/png")

    assert download(url)[0] == b"picture"


@pytest.mark.parametrize(
    ("change", "code"),
    [({"access_key_id": "AKIAWRONG"}, "InvalidAccessKeyId"), ({"secret_access_key": "wrong"}, "SignatureDoesNotMatch")],
)
def test_a_wrong_key_is_said_without_repeating_it(store: ObjectStore, change: dict[str, str], code: str) -> None:
    with store.checking_keys():
        sentence = refusal(store.with_settings(**change))

    assert sentence == f"the picture could not be uploaded: the store at BUCKET_ENDPOINT_URL refused it ({code})"


def test_a_missing_bucket_is_said(store: ObjectStore) -> None:
    assert refusal(store.with_settings(name="gone")).endswith("refused it (NoSuchBucket)")


def test_a_server_that_is_gone_is_said(store: ObjectStore) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # taken, so that nobody else listens there, and not listened on
        sentence = refusal(store.with_settings(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}"))

    assert sentence.endswith("cannot be reached or does not answer (EndpointConnectionError)")


def test_a_server_that_says_nothing_is_given_up_after_three_attempts(store: ObjectStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = store.with_settings(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        sentence = refusal(silent, read_timeout=0.1)
        server.setblocking(False)
        for _ in range(ATTEMPTS):
            server.accept()[0].close()
        with pytest.raises(BlockingIOError):
            server.accept()

    assert sentence.endswith("cannot be reached or does not answer (ReadTimeoutError)")


@pytest.mark.parametrize("body", [b"<Error><Code>secret /etc/passwd</Code></Error>", b"secret", b""])
def test_a_server_of_another_kind_is_said_without_its_words(store: ObjectStore, body: bytes) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(answer_once, server, answer)
        sentence = refusal(store.with_settings(endpoint_url=f"http://127.0.0.1:{server.getsockname()[1]}"))

    assert "secret" not in sentence
    assert sentence.startswith("the picture could not be uploaded: the store at BUCKET_ENDPOINT_URL refused it (")


def answer_once(server: socket.socket, answer: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://a..b", "http://[::zz]:9000"])
def test_an_endpoint_that_cannot_be_is_said(store: ObjectStore, url: str) -> None:
    assert "cannot be reached" in refusal(store.with_settings(endpoint_url=url))


def test_many_threads_share_one_client(store: ObjectStore) -> None:
    bucket = Bucket(store.settings)

    def go(number: int) -> tuple[bytes, object]:
        url = bucket.upload(f"thread/{number}.png", b"%d" % number * 10_000, "image/png")
        return download(url)[0], bucket._client

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(go, range(16)))

    assert [data for data, _ in answers] == [b"%d" % number * 10_000 for number in range(16)]
    assert len({id(client) for _, client in answers}) == 1


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3-eu-west-1.amazonaws.com/", "eu-west-1"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://S3.US-WEST-004.backblazeb2.com:443", "us-west-004"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://account.r2.cloudflarestorage.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_an_address_is_signed_for_the_region_in_the_endpoint(url: str, region: str) -> None:
    assert _region(url) == region
