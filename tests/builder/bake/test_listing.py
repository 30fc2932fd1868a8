"""A hub that lists what cannot be: one sentence, and nothing is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.bake import hub as hub_module
from builder.bake.errors import StoppedError
from builder.bake.hub import Hub
from builder.bake.order import Order, bake
from builder.bake.parts import COMPONENTS
from qwen_edit.store.catalog import BASE_REPOSITORY
from qwen_edit.store.manifest import Manifest
from tests.support.baked import VAE
from tests.support.loopback_hub import INFO, Fault, LoopbackHub, Reply, refused

Change = Callable[[dict[str, Any]], object]


def answered(body: bytes) -> Fault:
    return lambda reply: replace(reply, body=body)


def listed(change: Change) -> Fault:
    """The listing after a change of the hub's document; what the change returns is sent instead, if anything."""

    def fault(reply: Reply) -> Reply:
        document = json.loads(reply.body)
        other = change(document)
        return replace(reply, body=json.dumps(document if other is None else other).encode())

    return fault


def file(field: str, value: object) -> Change:
    """Another value in the entry of the VAE's weights."""

    def change(document: dict[str, Any]) -> None:
        (entry,) = (entry for entry in document["siblings"] if entry["rfilename"] == VAE)
        *above, last = field.split(".")
        for name in above:
            entry = entry[name]
        entry[last] = value

    return change


def field(name: str, value: object) -> Change:
    return lambda document: document.update({name: value})


def instead(other: object) -> Change:
    return lambda _document: other


def sentence(folder: Path, hub: Hub) -> str:
    """The one sentence of a bake of the VAE that failed."""
    outcome = bake(Order(folder, (COMPONENTS["vae"],)), hub, lambda _: None)
    (sentences,) = outcome.failures.values()
    (only,) = sentences
    assert Manifest.read(folder) is None
    assert list(folder.rglob("*")) == []
    return only


NO_SIZES: list[object] = [-5, 2**64, 1.5, "12", None, True, [], {}]
NO_HEX: list[object] = ["", "A" * 64, "g" * 64, "a" * 63, "a" * 65, 7, None, [], {}, "a" * 10**6]
NO_LFS: list[object] = ["large", 7, ["sha256"], {"sha256": {}}]
NO_PATHS: list[object] = ["", "../up", "/x", "a\\b", "a\x1b[31m", "x" * 300, 7, None, [], {}]
NO_COMMITS: list[object] = [None, "", "main", "g" * 40, 7, [], "a" * 64]
NO_FILES: list[object] = [None, {}, "files", 7, [None], [[]], ["vae"], [{}]]
NO_LISTINGS: list[object] = [[], "text", 7, [[]]]
CHANGES: list[Change] = [
    *(file("size", value) for value in NO_SIZES),
    *(file("blobId", value) for value in NO_HEX),
    *(file("lfs.sha256", value) for value in NO_HEX),
    *(file("lfs", value) for value in NO_LFS),
    *(file("rfilename", value) for value in NO_PATHS),
    *(field("sha", value) for value in NO_COMMITS),
    *(field("siblings", value) for value in NO_FILES),
    lambda document: document["siblings"].append(document["siblings"][0]),
    *(instead(other) for other in NO_LISTINGS),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_a_listing_with_a_wrong_value_is_told_in_one_sentence(
    number: int, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(INFO, listed(CHANGES[number]))

    said = sentence(folder, hub)

    assert said.startswith(f"{remote.url} does not answer as a model hub does: for {BASE_REPOSITORY} at main it lists ")
    assert said.endswith("; check HF_ENDPOINT and any proxy between")
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b"\xff", b"null"])
def test_a_listing_that_is_no_document_is_told_in_one_sentence(
    body: bytes, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(INFO, answered(body))

    assert sentence(folder, hub).startswith(f"{remote.url} does not answer as a model hub does")


def test_a_listing_without_end_is_not_read_to_it(
    folder: Path, hub: Hub, remote: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "LONGEST_LISTING", 1 << 17)
    remote.fault(INFO, answered(b" " * (1 << 20)))

    assert f"for {BASE_REPOSITORY} at main it lists more than {1 << 17} bytes" in sentence(folder, hub)


def test_a_listing_that_drips_is_given_up(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(INFO, lambda reply: replace(reply, body=reply.body + b" " * (1 << 19)), times=9)
    impatient = replace(hub, patience=replace(hub.patience, listing=0.0))  # which every listing takes longer than

    assert "the hub's listing is not whole after 0 s, 3 times in a row; check the network" in sentence(
        folder, impatient
    )


@pytest.mark.parametrize("body", [b"[]", b'"error"', b'{"error": 7, "errors": 7}', b"\xff\xfe", b"[" * 100_000])
def test_a_refusal_is_told_by_its_status_whatever_its_body(
    body: bytes, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(INFO, lambda reply: replace(refused(418)(reply), body=body))

    assert sentence(folder, hub).startswith(f"{BASE_REPOSITORY} at main: the hub answered 418; check HF_ENDPOINT")


def test_a_header_of_thousands_of_digits_is_no_traceback(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(INFO, refused(429, RateLimit=f'"api";r=0;t={"9" * 5000}'))

    said: list[str] = []
    hub.stop.set()  # the wait is not waited for

    with pytest.raises(StoppedError):
        bake(Order(folder, (COMPONENTS["vae"],)), hub, said.append)

    assert said == [f"{BASE_REPOSITORY} at main: the hub limits the rate (429); attempt 2 of 3 in 300 s"]
