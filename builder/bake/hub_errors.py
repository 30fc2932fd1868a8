"""The hub client's exceptions, told as one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # public, but not in its __all__

from builder.bake.errors import BakeError, HubError, StoppedError, WrongContentError

RESUME = "run the same command again: it goes on where it stopped"
LONGEST_WAIT = 300.0
"""Seconds that a hub may ask us to wait: its rate limits are counted in windows of five minutes."""

_REFUSED = "Invalid credentials in Authorization header"


@contextmanager
def explained(what: str, endpoint: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into a `HubError` about `what` (a repository, or a file in one)."""
    try:
        yield
    except (BakeError, StoppedError, MemoryError):
        raise
    except OfflineModeIsEnabled as error:
        raise HubError(f"{what} cannot be fetched while HF_HUB_OFFLINE is set", "unset it for the bake") from error
    except HfHubHTTPError as error:
        raise _refusal(error, what) from error
    except httpx2.UnsupportedProtocol as error:
        raise no_hub(endpoint) from error
    except httpx2.TransportError as error:
        problem = f"{what}: the connection to {endpoint} failed ({type(error).__name__})"
        raise HubError(problem, f"check the network and {RESUME}", transient=True) from error
    except OSError as error:
        problem = f"{what}: this machine refused the transfer ({type(error).__name__}: {error.strerror})"
        raise HubError(problem, f"check its network settings and {RESUME}") from error
    except Exception as error:
        raise no_hub(endpoint) from error


def no_hub(endpoint: str, detail: str = "") -> HubError:
    """The error of an answer that no hub gives, with what is wrong with it."""
    problem = f"{endpoint} does not answer as a model hub does"
    return HubError(f"{problem}: {detail}" if detail else problem, "check HF_ENDPOINT and any proxy between")


def _refusal(error: HfHubHTTPError, what: str) -> HubError | WrongContentError:
    status = error.response.status_code
    match error:
        case GatedRepoError():
            return HubError(f"{what} is gated ({status})", "accept its terms on the hub and set HF_TOKEN")
        case RepositoryNotFoundError():
            return _not_found(what, status)
        case RevisionNotFoundError():
            return HubError(f"{what} has no such revision", "name a commit, branch or tag that exists with --revision")
        case EntryNotFoundError():
            problem = f"{what} is in the listing but cannot be found any more ({status})"
            return HubError(problem, "run the same command again, or pin another commit with --revision")
    return _by_status(status, what, error)


def _not_found(what: str, status: int) -> HubError:
    problem = f"{what} cannot be found ({status}): it does not exist, or it is private"
    return HubError(problem, "check the name, and HF_TOKEN if it is private")


def _by_status(status: int, what: str, error: HfHubHTTPError) -> HubError | WrongContentError:
    # Without a token the hub answers 401 for a repository that does not exist, so that private names stay private.
    if status == 401 and error.response.headers.get("X-Error-Message") != _REFUSED:
        return _not_found(what, status)
    if status in (401, 403):
        return HubError(f"{what}: the hub refused the token ({status})", "set HF_TOKEN to one that may read it")
    if status == 416:
        return WrongContentError(f"{what} is shorter on the hub than what was fetched before")
    if status == 429:
        remedy = f"wait some minutes or set HF_TOKEN for a higher limit, and {RESUME}"
        return HubError(f"{what}: the hub limits the rate (429)", remedy, transient=True, wait=_wait(error))
    if status >= 500 or status == 408:
        remedy = f"the fault is on its side: later, {RESUME}"
        return HubError(f"{what}: the hub fails ({status})", remedy, transient=True, wait=_wait(error))
    return HubError(f"{what}: the hub answered {status}", "check HF_ENDPOINT and the name of the repository")


def _wait(error: HfHubHTTPError) -> float | None:
    with suppress(ValueError):  # of a number with thousands of digits
        limit = parse_ratelimit_headers(error.response.headers)
        if limit is not None and limit.remaining == 0:
            return min(float(limit.reset_in_seconds), LONGEST_WAIT)
    seconds = error.response.headers.get("Retry-After", "").strip()
    return min(float(seconds), LONGEST_WAIT) if seconds.isascii() and seconds.isdigit() else None
