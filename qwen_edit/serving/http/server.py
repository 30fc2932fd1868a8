"""The server: its sockets, its signals, and its end."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Never

import uvicorn

from qwen_edit.editor import Fetch
from qwen_edit.log import flush, log, write_beside
from qwen_edit.pictures import read
from qwen_edit.serving.ending import FLUSH_S, end_at_signals, leave
from qwen_edit.serving.http.edge import App, Edge
from qwen_edit.serving.http.protocol import LimitedProtocol
from qwen_edit.serving.http.readiness import Readiness
from qwen_edit.serving.jobs.table import Jobs
from qwen_edit.serving.service import Service
from qwen_edit.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

BACKLOG = 512
"""Connections that wait to be accepted, while modules are imported for instance."""

GRACE_S = 5
"""Seconds that an end waits for answers that are on their way."""

_TALKERS = ("uvicorn.error", "python_multipart")
"""Loggers that write a line of text for each wrong request. The edge logs what breaks; callers are told the rest."""

_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(settings: Settings, fetch: Fetch | None = None) -> Never:
    """Serve until a signal, and end the process.

    The sockets are bound first, so that whoever asks for health while the model loads is answered.

    Args:
        fetch: see `Editor.load`.
    """
    sockets = bind(settings)
    end_at_signals()
    read.ignore_pillows_warnings()
    write_beside()
    if settings.host not in _LOCAL and settings.api_key is None:
        log("open to everybody", "warning", host=settings.host, remedy="QWEN_EDIT_API_KEY")
    service = Service(settings, fetch, settings.places)
    service.load()
    status = asyncio.run(_serve(service, sockets))
    service.close()
    flush(FLUSH_S)
    leave(status)


def bind(settings: Settings) -> list[socket.socket]:
    """The sockets of `PORT` and `PORT_HEALTH`, which may be one. A port that cannot be bound ends the process."""
    ports = dict.fromkeys((settings.port, settings.port_health or settings.port))
    return [_bound(settings.host, port) for port in ports]


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        sys.exit(
            f"qwen-edit: port {port} of {host} cannot be bound ({error.strerror or error}); choose others by PORT, "
            "PORT_HEALTH and QWEN_EDIT_HOST, and on RunPod expose the same ports"
        )


class _Server(uvicorn.Server):
    """uvicorn's, without its handlers of signals: a signal first lets what runs end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class _End:
    """The end of the server, begun by a signal or a lost device."""

    def __init__(self, server: _Server, jobs: Jobs, readiness: Readiness) -> None:
        self.status = 0
        self._server = server
        self._jobs = jobs
        self._readiness = readiness
        self._ending: asyncio.Task[None] | None = None

    def by_signal(self, number: int) -> None:
        """Let what runs end; a second signal ends at once."""
        log("ended by a signal", signal=signal.Signals(number).name)
        if self._ending is not None:
            leave(128 + number)
        self._begin(self._jobs.service.settings.drain_s)

    def by_loss(self) -> None:
        """Nothing can be done any more: another process must."""
        self.status = 1
        self._readiness.lose()
        self._begin(0)

    def by_import(self, app: asyncio.Future[App]) -> None:
        """The routes are there, or cannot be imported: then nobody is answered anything but health."""
        if not app.cancelled() and (error := app.exception()) is not None:
            log("no routes", "error", error=f"{type(error).__name__}: {error}"[:200])
            self.status = 1
            self._begin(0)

    def _begin(self, seconds: float) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end(seconds))

    async def _end(self, seconds: float) -> None:
        await self._jobs.close(seconds)
        self._server.should_exit = True


async def _serve(service: Service, sockets: Sequence[socket.socket]) -> int:
    loop = asyncio.get_running_loop()
    jobs, readiness = Jobs(service), Readiness(service)
    # Beside the load: whoever asks for more than health waits for it.
    app: asyncio.Future[App] = loop.run_in_executor(None, partial(_app, jobs, readiness))
    server = _Server(_config(Edge(service.settings, jobs, readiness, app), service.settings))
    end = _End(server, jobs, readiness)
    app.add_done_callback(end.by_import)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.by_signal, number)
    service.device.when_lost(lambda: loop.call_soon_threadsafe(end.by_loss))
    becoming = loop.create_task(readiness.become())
    log("listening", ports=[one.getsockname()[1] for one in sockets], host=service.settings.host)
    await server.serve(sockets=list(sockets))
    becoming.cancel()
    return end.status


def _shared(edge: Edge, origins: Sequence[str]) -> "Edge | ASGIApp":
    """The edge, with what lets pages of other origins ask: refusals too must be readable for these."""
    if not origins:
        return edge
    from starlette.middleware.cors import CORSMiddleware

    exposed = ("retry-after", "x-request-id", "x-qwen-edit")
    return CORSMiddleware(edge, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=exposed)


def _app(jobs: Jobs, readiness: Readiness) -> App:
    from qwen_edit.serving.http.app import build

    return build(jobs, readiness)


def _config(edge: Edge, settings: Settings) -> uvicorn.Config:
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return uvicorn.Config(
        _shared(edge, settings.origins),
        http=LimitedProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=GRACE_S,
    )
