import ipaddress
import re
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_edit import https
from qwen_edit.errors import EditError, InvalidRequest
from qwen_edit.pictures.web import get_picture
from qwen_edit.public_addresses import is_public
from tests.support import https_site
from tests.support.https_site import LOOPBACK, download, watched

PUBLIC = ["8.8.8.8", "1.1.1.1", "151.101.1.140", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"]
LOCAL_NETWORKS = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/8",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
LOCAL_URLS = [
    "https://127.0.0.1/",
    "https://127.8.9.10/",
    "https://0.0.0.0/",
    "https://169.254.169.254/latest/meta-data/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1:8443/",
    "https://100.64.0.1/",
    "https://100.100.100.200/",
    "https://224.0.0.1/",
    "https://255.255.255.255/",
    "https://[::]/",
    "https://[::1]/",
    "https://[::1]:8443/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::127.0.0.1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:8.8.8.8]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/",
    "https://[fec0::1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b::169.254.169.254]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "https://localhost/",
    "https://LOCALHOST:443/#part",
]
BAD_URLS = {
    "": "does not begin with https://",
    "pictures.test/a.png": "does not begin with https://",
    "//pictures.test/": "does not begin with https://",
    "http://pictures.test/": "does not begin with https://",
    "file:///etc/passwd": "does not begin with https://",
    "ftp://pictures.test/": "does not begin with https://",
    "data:image/png;base64,AAAA": "does not begin with https://",
    "https://": "without a host",
    "https:///": "without a host",
    "https:///pictures.test/": "without a host",
    "https:pictures.test": "without a host",
    "https://?secret": "without a host",
    "https://user@pictures.test/": "user name or a password",
    "https://user:secret@pictures.test/": "user name or a password",
    "https://@pictures.test/": "user name or a password",
    "https://pictures.test@127.0.0.1/": "user name or a password",
    "https://:443/": "host is unusual",
    "https://.pictures.test/": "host is unusual",
    "https://pictures..test/": "host is unusual",
    "https://pictures.test./": "host is unusual",
    "https://pictures test/": "host is unusual",
    "https://pictures%2etest/": "host is unusual",
    "https://127.0.0.1%00.pictures.test/": "host is unusual",
    f"https://{'a' * 64}.test/": "host is unusual",
    f"https://{'.'.join(['a' * 60] * 5)}/": "host is unusual",
    "https://bücher.test/": "host is unusual",
    "https://①②⑦.0.0.1/": "host is unusual",
    "https://127。0。0。1/": "host is unusual",
    "https://２130706433/": "host is unusual",
    "https://2130706433/": "host is unusual",
    "https://0177.0.0.1/": "host is unusual",
    "https://0177.1/": "host is unusual",
    "https://0x7f.1/": "host is unusual",
    "https://0x7f000001/": "host is unusual",
    "https://127.1/": "host is unusual",
    "https://127.0.0.1./": "host is unusual",
    "https://127.0.0.256/": "host is unusual",
    "https://1.2.3.4.5/": "host is unusual",
    "https://::1/": "host is unusual",
    "https://[127.0.0.1]/": "(host is unusual|cannot be read)",
    "https://[fe80::1%25eth0]/": "(host is unusual|cannot be read)",
    "https://[fe80::1%eth0]/": "(host is unusual|cannot be read)",
    "https://[::1]pictures.test/": "(host is unusual|cannot be read)",
    "https://[v1.a]/": "(host is unusual|cannot be read)",
    "https://[::1/": "cannot be read",
    "https://pictures.test℀/": "cannot be read",
    "https://pictures.test:0/": "port 0",
    "https://pictures.test:65536/": "port 65536",
    "https://pictures.test:123456/": "host is unusual",
    "https://pictures.test:-1/": "host is unusual",
    "https://pictures.test:https/": "host is unusual",
    "https://pictures.test:４43/": "host is unusual",
    "https://pictures.test\\@127.0.0.1/": "backslash",
    "https:\\\\pictures.test\\a.png": "backslash",
    "https://127.0.0.1\t.pictures.test/": "unprintable",
    "https://pictures.test/\r\nHost: inside.test": "unprintable",
    "https://pictures.test/\0": "unprintable",
    "https://pictures.test/\ud800": "unprintable",
    "https://pictures.test/" + "a" * https.MAX_URL: "of 8,214 characters, ",
}


@pytest.fixture
def connections() -> Iterator[list[object]]:
    """The addresses that were connected to, which is refused."""
    with watched(refusing=True) as seen:
        yield seen


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("network", LOCAL_NETWORKS)
@settings(max_examples=20)
@given(data=st.data())
def test_no_address_of_a_network_with_another_purpose_is_public(network: str, data: st.DataObject) -> None:
    address = data.draw(st.ip_addresses(network=network))
    assert not is_public(str(address))


@given(st.ip_addresses(v=4))
def test_ipv4_in_the_form_of_ipv6_is_never_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    for disguise in (number, 0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert not is_public(str(ipaddress.IPv6Address(disguise)))


@pytest.mark.parametrize("url", LOCAL_URLS)
def test_a_url_of_a_local_address_is_refused_before_a_connection(url: str, connections: list[object]) -> None:
    with pytest.raises(InvalidRequest, match=r"^invalid_request: image is a URL at .* does not lead to a public addr"):
        get_picture(url)
    assert connections == []


@pytest.mark.parametrize("host", ["inside.test", "mixed.test"])
def test_a_name_with_one_private_address_among_its_addresses_is_refused(host: str, connections: list[object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        download(f"https://{host}/")
    assert caught.value.sentence == f"image is a URL at {host}, which does not lead to a public address"
    assert connections == []


def test_a_name_that_is_unknown_reads_as_one_of_a_private_address() -> None:
    with pytest.raises(InvalidRequest) as caught:
        download("https://nowhere.test/")
    assert caught.value.sentence == "image is a URL at nowhere.test, which does not lead to a public address"


@pytest.mark.parametrize(("url", "complaint"), BAD_URLS.items())
def test_an_unusual_url_is_refused_before_it_is_looked_up(url: str, complaint: str, connections: list[object]) -> None:
    looked_up: list[str] = []

    def resolve(host: str, _: int) -> list[str]:
        looked_up.append(host)
        return ["8.8.8.8"]

    with pytest.raises(InvalidRequest, match=rf"^invalid_request: image is a URL .*{complaint}.*expected") as caught:
        download(url, through=https_site.network(resolve))
    assert not re.search(r"127\.|secret", caught.value.sentence)
    assert (looked_up, connections) == ([], [])


def test_the_system_resolves_a_name_to_its_addresses() -> None:
    assert set(https.resolve("localhost", 443)) in ({LOOPBACK}, {"::1"}, {LOOPBACK, "::1"})


def test_the_system_says_that_a_name_is_unknown_as_an_os_error() -> None:
    with pytest.raises(OSError, match=r".+"):
        https.resolve("unknown.invalid", 443)


PIECES = [
    *("https://", "http://", "//", ":", "/", "\\", "@", "?", "#", "[", "]", "%", "%25", ".", "..", "-", "_"),
    *("::1", "::ffff:", "fe80::", "127.0.0.1", "8.8.8.8", "[2606:4700::1]", "0x7f.1", "0177", "2130706433"),
    *("localhost", "inside.test", "a.test", "xn--", "xn--bcher-kva", "．", "。", "①", "é"),
    *("443", ":443", ":0", ":65536", ":99999"),
]
URLS = st.one_of(
    st.text(),
    st.text(st.characters(exclude_categories=())).map("https://".__add__),
    st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=2)), max_size=6).map(
        lambda pieces: "https://" + "".join(pieces)
    ),
)
ADDRESSES = st.one_of(
    st.sampled_from(["93.184.215.14", "2606:4700::6810:84e5", "10.0.0.1", "::1", "fe80::1%2", "64:ff9b::7f00:1"]),
    st.ip_addresses().map(str),
)


def addresses_of(connections: list[object]) -> set[str]:
    return {str(connection[0]) for connection in connections if isinstance(connection, tuple)}


@settings(max_examples=400)
@given(url=URLS, answers=st.lists(ADDRESSES, max_size=3))
def test_any_text_is_refused_in_a_sentence_and_never_connects_to_an_address_that_is_not_public(
    url: str, answers: list[str]
) -> None:
    def resolve(host: str, _: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            if not answers:
                raise socket.gaierror from None
            return answers

    with watched(refusing=True) as connections, pytest.raises(EditError, match=r"^invalid_\w+: image is a URL [^\n]+$"):
        download(url, through=https_site.network(resolve, reachable=()))
    assert all(is_public(address) for address in addresses_of(connections))


def test_the_texts_of_the_test_above_reach_a_connection() -> None:
    with watched(refusing=True) as connections, pytest.raises(EditError, match="cannot be reached"):
        download("https://a.test/", through=https_site.network(lambda *_: ["8.8.8.8", "2606:4700::1"], reachable=()))
    assert addresses_of(connections) == {"8.8.8.8", "2606:4700::1"}
