"""Connections that are slow on purpose, at the real protocol with seconds made short."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from qwen_edit.serving.http.body import BodyError, GoneError, Limits, Uploads
from qwen_edit.serving.http.protocol import LimitedProtocol
from tests.support.patience import PATIENCE

LARGE = 16_000_000
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Any]


class Hurried(LimitedProtocol):
    head_s = 0.3
    stall_s = 0.3


async def app(scope: dict[str, Any], _receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """`/slow` answers after longer than a head may take, `/large` with much."""
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * Hurried.head_s)
    body = b"x" * (LARGE if scope["path"] == "/large" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening() -> AsyncIterator[Connect]:
    """A server, and what connects to it."""
    config = uvicorn.Config(
        app, port=0, http=Hurried, ws="none", lifespan="off", log_config=None, timeout_keep_alive=int(PATIENCE)
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield lambda: asyncio.open_connection("127.0.0.1", port)
    finally:
        for one in server.servers:
            one.close()
        for connection in list(server.server_state.connections):
            connection.transport.abort()


async def cut(reader: asyncio.StreamReader) -> bytes:
    """What came before the server cut the connection."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            return await reader.read()
    return b""


async def drip(connect: Connect, first: bytes, parts: bytes) -> bytes:
    """Send something, then a byte now and then, until the server cuts the connection."""
    reader, writer = await connect()
    writer.write(first)
    ended = asyncio.ensure_future(cut(reader))
    try:
        for part in [*parts, None]:
            if part is None or ended.done():
                break
            with contextlib.suppress(ConnectionError):
                writer.write(bytes([part]))
                await writer.drain()
            await asyncio.sleep(0.05)
        return await ended
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("first", "parts"),
    [
        pytest.param(b"", b"", id="silent"),
        pytest.param(b"GET /ping HTTP/1.1\r\nhost: ", b"", id="half a head"),
        pytest.param(b"GET /ping HTTP/1.1\r\nhost: ", b"a" * 200, id="a head byte by byte"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP", b"", id="half a head behind an answer"),
    ],
)
def test_a_head_that_does_not_come_is_not_waited_for(first: bytes, parts: bytes) -> None:
    async def scene() -> bytes:
        async with listening() as connect:
            return await drip(connect, first, parts)

    assert asyncio.run(scene()).count(b"HTTP/1.1 200") == first.count(b"\r\n\r\n")


def test_an_answer_that_takes_its_time_and_a_second_question_after_a_while_are_no_heads() -> None:
    async def scene() -> None:
        async with listening() as connect:
            reader, writer = await connect()
            for path in (b"/slow", b"/"):
                writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                await reader.readexactly(2)
                await asyncio.sleep(2 * Hurried.head_s)
            writer.close()

    asyncio.run(scene())


def test_a_reader_who_takes_nothing_is_cut_off_and_one_who_reads_gets_all() -> None:
    async def scene() -> tuple[int, int]:
        async with listening() as connect:
            question = b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            stalled, good = await connect(), await connect()
            for _, writer in (stalled, good):
                writer.write(question)
            all_of_it = len(await cut(good[0]))
            await asyncio.sleep(3 * Hurried.stall_s)
            some = len(await cut(stalled[0]))
            for _, writer in (stalled, good):
                writer.close()
        return all_of_it, some

    all_of_it, some = asyncio.run(scene())
    assert all_of_it > LARGE
    assert some < LARGE


def coming(*parts: bytes, then: object = None) -> Callable[[], Any]:
    """A `receive` with the parts of a body that has no end; then it waits, or says that the caller left."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        if then is None:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


@pytest.mark.parametrize("limits", [Limits(silent_s=0.05), Limits(whole_s=0.05)])
def test_a_body_that_stops_coming_is_not_waited_for(limits: Limits) -> None:
    with pytest.raises(BodyError) as caught:
        asyncio.run(Uploads(limits).read(coming(b"{"), None))

    assert caught.value.status == 408


def test_a_caller_who_leaves_in_the_middle_of_a_body_is_noticed_and_makes_room() -> None:
    uploads = Uploads()

    for _ in range(100):
        with pytest.raises(GoneError):
            asyncio.run(uploads.read(coming(b"{", then="gone"), 30_000_000))


def beside(number: int, part: bytes, declared: int) -> int:
    """The status of one more body while so many are on their way that have sent a part and go on; 0 if it is taken."""

    async def scene() -> int:
        uploads = Uploads()
        held = [asyncio.ensure_future(uploads.read(coming(part), declared)) for _ in range(number)]
        await asyncio.sleep(0)
        try:
            await uploads.read(whole(b" " * 10_000_000), 10_000_000)
        except BodyError as error:
            return error.status
        finally:
            for one in held:
                one.cancel()
            await asyncio.wait(held)
        return 0

    return asyncio.run(scene())


def whole(body: bytes) -> Callable[[], Any]:
    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def test_bodies_that_promise_much_and_send_little_do_not_keep_others_out() -> None:
    assert beside(200, b"{", declared=30_000_000) == 0


@pytest.mark.parametrize(("number", "part"), [(256, b"{"), (17, b" " * 30_000_000)])
def test_too_many_bodies_or_bytes_on_their_way_are_refused(number: int, part: bytes) -> None:
    assert beside(number, part, declared=30_000_000) == 503


def test_of_what_was_refused_only_a_little_more_is_read() -> None:
    taken: list[bytes] = []

    async def endless() -> Any:
        taken.append(b"x" * 100_000)
        return {"type": "http.request", "body": taken[-1], "more_body": True}

    asyncio.run(Uploads().drain(endless))
    asyncio.run(Uploads(Limits(drain_s=0.05)).drain(coming()))

    assert sum(map(len, taken)) == 1_000_000
