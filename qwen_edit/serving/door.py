"""Which door of the worker opens: the SDK's, the queue's, HTTP's, or an edit of `test_input.json` alone."""

from collections.abc import Sequence
from typing import Literal, Never

from qwen_edit.editor import Fetch
from qwen_edit.settings import Settings

Door = Literal["sdk", "queue", "http", "once"]

SDK_ARGUMENT = "--rp_"
SDK_ARGUMENTS = ("--test_input", "--test_output")


def choose(arguments: Sequence[str], settings: Settings) -> Door:
    """The door of `python handler.py`, in this order: arguments, `QWEN_EDIT_MODE`, what the platform has set.

    No variable of RunPod says "load balancer". Its queue's workers have `RUNPOD_WEBHOOK_GET_JOB`, by which its SDK too
    knows them; what else has an endpoint's id, or a port for health, is behind a load balancer.

    Args:
        arguments: of the command line, without the program.
    """
    if any(one.startswith((SDK_ARGUMENT, *SDK_ARGUMENTS)) for one in arguments):
        return "sdk"
    if settings.mode != "auto":
        return settings.mode
    if settings.on_platform:
        return "queue"
    if settings.port_health is not None or settings.on_endpoint:
        return "http"
    return "once"


def serve(settings: Settings, fetch: Fetch | None) -> Never:
    """Serve HTTP until the process ends; see `serving.http.server`. The other doors have no use for its packages."""
    from qwen_edit.serving.http import server

    server.serve(settings, fetch)
