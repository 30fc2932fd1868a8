import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder.bake.hub import Hub, Patience
from builder.bake.order import Order, Outcome, bake
from builder.bake.parts import CHECKPOINT_NAMES, COMPONENTS, select
from builder.verify.directory import verify
from qwen_edit.store.catalog import BASE_FOLDER, BASE_REPOSITORY, CHECKPOINT_FOLDER, CHECKPOINT_REPOSITORY
from tests.support.baked import LIGHTNING, VAE, base_files, checkpoint_files, wanted, weights
from tests.support.loopback_hub import (
    INFO,
    Fault,
    LoopbackHub,
    corrupted,
    cut,
    held_in_the_middle,
    lengthened,
    not_json,
    refused,
    shortened,
)

VAE_BYTES = base_files()[VAE]
CONFIG = "vae/config.json"
EVERYTHING = select((), CHECKPOINT_NAMES)
NEVER = 99
"""Times that a fault strikes when it never stops."""


def bake_some(folder: Path, hub: Hub, *components: str) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    order = Order(folder, tuple(COMPONENTS[name] for name in components) or EVERYTHING)
    return bake(order, hub, said.append), said


def ranges(remote: LoopbackHub, path: str) -> list[str | None]:
    return [seen.range for seen in remote.seen if seen.path == path]


def sentence(outcome: Outcome) -> str:
    """The one sentence of a bake in which one file failed."""
    (sentences,) = outcome.failures.values()
    (only,) = sentences
    return only


def test_a_cut_connection_resumes_where_it_stopped(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.3))
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert ranges(remote, VAE) == [None, f"bytes={int(0.3 * len(VAE_BYTES))}-"]
    assert (folder / BASE_FOLDER / VAE).read_bytes() == VAE_BYTES


def test_a_transfer_that_goes_on_a_little_each_time_is_not_given_up(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(VAE, cut(0.1), times=8)
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert len(ranges(remote, VAE)) == 9


def test_the_next_run_resumes_what_this_one_gave_up(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.3), cut(0), cut(0), cut(0))
    outcome, _ = bake_some(folder, hub, "vae")
    assert sentence(outcome).startswith(f"{VAE} of {BASE_REPOSITORY}: the connection to {remote.url} failed")
    assert ", 3 times in a row; check the network and run the same command again: " in sentence(outcome)
    assert not (folder / BASE_FOLDER / VAE).exists()
    remote.heal()
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert ranges(remote, VAE) == [f"bytes={int(0.3 * len(VAE_BYTES))}-"]
    assert [path.name for path in (folder / BASE_FOLDER / "vae").iterdir()] == [Path(VAE).name]


def test_a_hub_that_cannot_resume_is_read_from_the_start(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.ranges = False
    remote.fault(VAE, cut(0.3))
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert (folder / BASE_FOLDER / VAE).read_bytes() == VAE_BYTES


@pytest.mark.parametrize("path", [VAE, CONFIG])
@pytest.mark.parametrize("fault", [corrupted, shortened, lengthened])
def test_wrong_content_is_fetched_again_once(
    fault: Fault, path: str, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(path, fault)
    outcome, _ = bake_some(folder, hub, "configs", "vae")
    assert not outcome.failures
    assert ranges(remote, path) == [None, None]
    assert (folder / BASE_FOLDER / path).read_bytes() == base_files()[path]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (corrupted, "has sha256 "),
        (shortened, f"has {len(VAE_BYTES) - 7} bytes, {len(VAE_BYTES)} in the hub's listing"),
        (lengthened, f"is longer than the {len(VAE_BYTES)} bytes that the hub lists"),
    ],
)
def test_content_that_is_wrong_twice_is_an_error(
    fault: Fault, problem: str, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(VAE, fault, times=2)
    outcome, _ = bake_some(folder, hub, "vae", "lightning")
    assert list(outcome.failures) == ["vae"]
    assert sentence(outcome).startswith(f"{VAE} {problem}")
    assert ", twice; the hub or a proxy between serves bad data: " in sentence(outcome)
    assert list((folder / BASE_FOLDER / "vae").iterdir()) == []
    assert (folder / CHECKPOINT_FOLDER / LIGHTNING).exists()


def test_a_partial_file_that_was_damaged_is_fetched_anew(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.3), cut(0), cut(0), cut(0))
    bake_some(folder, hub, "vae")
    (partial,) = (folder / BASE_FOLDER / "vae").iterdir()
    partial.write_bytes(bytes(partial.stat().st_size))
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert (folder / BASE_FOLDER / VAE).read_bytes() == VAE_BYTES


def test_a_partial_file_of_another_commit_is_removed_in_the_end(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.3), cut(0), cut(0), cut(0))
    bake_some(folder, hub, "vae")
    remote.repositories[BASE_REPOSITORY].files[VAE] = weights(78, "decoder")
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert [path.name for path in (folder / BASE_FOLDER / "vae").iterdir()] == [Path(VAE).name]
    assert (folder / BASE_FOLDER / VAE).read_bytes() == weights(78, "decoder")


def test_a_partial_file_longer_than_the_hubs_is_fetched_anew(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(VAE, cut(0.9999), cut(0), cut(0), cut(0))
    bake_some(folder, hub, "vae")
    remote.fault(VAE, refused(416))
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures
    assert (folder / BASE_FOLDER / VAE).read_bytes() == VAE_BYTES


@pytest.mark.parametrize("path", [VAE, INFO])
@pytest.mark.parametrize("fault", [refused(429), refused(429, Retry_After="0"), refused(503), refused(500)])
def test_a_hub_that_is_busy_for_a_moment_is_waited_for(
    fault: Fault, path: str, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(path, fault, times=2)
    outcome, _ = bake_some(folder, hub, "vae")
    assert not outcome.failures


def test_a_wait_is_announced_with_the_attempt(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    remote.fault(INFO, refused(503))
    _, said = bake_some(folder, hub, "vae")
    assert said == [f"{BASE_REPOSITORY} at main: the hub fails (503); attempt 2 of 3 in 0.01 s"]


@pytest.mark.parametrize("headers", [{"Retry_After": "0"}, {"RateLimit": '"api";r=0;t=0'}])
def test_a_hub_that_names_a_time_is_asked_again_then(
    headers: dict[str, str], folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(INFO, refused(429, **headers))
    _, said = bake_some(folder, hub, "vae")
    assert said == [f"{BASE_REPOSITORY} at main: the hub limits the rate (429); attempt 2 of 3 in 0 s"]


def test_the_wait_doubles_up_to_the_longest() -> None:
    patience = Patience(wait=1.0, longest=5.0)
    assert [patience.before(attempt) for attempt in (2, 3, 4, 5, 6)] == [1, 2, 4, 5, 5]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            refused(429),
            "the hub limits the rate (429), 3 times in a row; wait some minutes or set HF_TOKEN for a higher",
        ),
        (refused(503), "the hub fails (503), 3 times in a row; the fault is on its side: later, run the same command"),
        (
            refused(401, "", "Invalid credentials in Authorization header"),
            "the hub refused the token (401); set HF_TOKEN",
        ),
        (refused(401), "cannot be found (401): it does not exist, or it is private; check the name, and HF_TOKEN"),
        (refused(404, "RepoNotFound"), "cannot be found (404): it does not exist, or it is private; check the name"),
        (refused(403, "GatedRepo"), "is gated (403); accept its terms on the hub and set HF_TOKEN"),
        (refused(418), "the hub answered 418; check HF_ENDPOINT"),
        (not_json, "does not answer as a model hub does; check HF_ENDPOINT and any proxy between"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_sentence(
    fault: Fault, expected: str, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(INFO, fault, times=3)
    outcome, _ = bake_some(folder, hub, "vae")
    assert expected in sentence(outcome)
    assert "\n" not in sentence(outcome)


def test_one_repository_that_fails_leaves_the_other_whole(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    del remote.repositories[CHECKPOINT_REPOSITORY]
    outcome, _ = bake_some(folder, hub)
    assert set(outcome.failures) == {"lightning", "original"}
    assert all((folder / BASE_FOLDER / path).exists() for path in wanted(base_files()))
    assert outcome.commits.keys() == {BASE_REPOSITORY}


def test_a_file_that_disappears_after_the_listing_fails_its_part_alone(
    folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.fault(VAE, refused(404, "EntryNotFound"))
    outcome, _ = bake_some(folder, hub)
    assert list(outcome.failures) == ["vae"]
    assert sentence(outcome) == (
        f"{VAE} of {BASE_REPOSITORY} is in the listing but cannot be found any more (404); "
        "run the same command again, or pin another commit with --revision"
    )
    assert all((folder / CHECKPOINT_FOLDER / path).exists() for path in wanted(checkpoint_files()))
    assert not verify(folder).ok


def test_a_repository_without_a_file_that_is_needed_is_told(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    del remote.repositories[BASE_REPOSITORY].files["transformer/config.json"]
    outcome, _ = bake_some(folder, hub)
    assert list(outcome.failures) == ["configs"]
    assert sentence(outcome).startswith(f"{BASE_REPOSITORY} has no transformer/config.json at commit aaaaaaaaaaaa; pin")


@pytest.mark.parametrize("path", ["processor/../../../up.json", "/processor/up.json", "processor/a\n.json"])
def test_a_listing_that_leads_out_of_the_folder_is_refused(
    path: str, folder: Path, hub: Hub, remote: LoopbackHub
) -> None:
    remote.repositories[BASE_REPOSITORY].files[path] = b"{}"
    outcome, _ = bake_some(folder, hub, "configs")
    assert sentence(outcome).startswith(f"{remote.url} does not answer as a model hub does")
    assert remote.fetched() == []


def test_a_hub_that_falls_silent_is_asked_again(folder: Path, hub: Hub, remote: LoopbackHub) -> None:
    gate = threading.Event()
    remote.fault(VAE, held_in_the_middle(gate))
    hasty = replace(hub, patience=replace(hub.patience, timeout=0.5, attempts=NEVER))
    outcome, _ = bake_some(folder, hasty, "vae")
    gate.set()
    assert not outcome.failures
    assert len(ranges(remote, VAE)) >= 2  # a busy machine can be silent for half a second more than once


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (
            "http://127.0.0.1:1",
            "the connection to http://127.0.0.1:1 failed (ConnectError), 3 times in a row; check the",
        ),
        ("gopher://hub", "gopher://hub does not answer as a model hub does; check HF_ENDPOINT"),
        ("nonsense", "nonsense does not answer as a model hub does; check HF_ENDPOINT"),
        ("http://hub:port", "http://hub:port does not answer as a model hub does; check HF_ENDPOINT"),
    ],
)
def test_an_endpoint_that_is_no_hub_is_told_in_one_sentence(
    endpoint: str, expected: str, folder: Path, hub: Hub
) -> None:
    outcome, _ = bake_some(folder, replace(hub, endpoint=endpoint), "vae")
    assert expected in sentence(outcome)
