"""Two gateway servers with one listening socket: who still loads stands back for who has loaded."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn

from app.gateway.predict.ports import Receive, Scope, Send
from app.gateway.predict.protocol import JoiningProtocol
from app.gateway.server import GatewayServer

WITHIN_S = 30


class Process:
    """A gateway server that says who answers, and at `/livez` what a gateway does."""

    def __init__(self, name: str, folder: Path, other: str, listener: socket.socket) -> None:
        self.name = name
        self.loaded = asyncio.Event()
        self.own = folder / f"{name}.sock"
        config = uvicorn.Config(
            self.answer, interface="asgi3", lifespan="off", http=JoiningProtocol, log_config=None, access_log=False
        )
        config.load()
        self.server = GatewayServer(config, self.own, [folder / f"{other}.sock"], self.loaded, 30.0)
        self._listener = listener.dup()
        self._task: asyncio.Task[None] | None = None

    async def answer(self, scope: Scope, _receive: Receive, send: Send) -> None:
        said = b'{"status": "%s"}' % (b"ok" if self.loaded.is_set() else b"loading")
        said = said if scope["path"] == "/livez" else self.name.encode()
        headers = [(b"content-length", str(len(said)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": said})

    def start(self) -> None:
        self._task = asyncio.create_task(self.server._serve([self._listener]))

    async def stop(self) -> None:
        self.server.should_exit = True
        if self._task is not None:
            await self._task


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Process, Process, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first, second = Process("first", folder, "second", listener), Process("second", folder, "first", listener)
        try:
            async with asyncio.timeout(WITHIN_S):
                yield first, second, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await first.stop()
            await second.stop()


async def asked(url: str, times: int = 40) -> set[str]:
    """Who answers, each time on a new connection."""
    found = set()
    for _ in range(times):
        async with httpx.AsyncClient(timeout=WITHIN_S) as client:
            found.add((await client.get(url)).text)
    return found


async def until_only(url: str, name: str) -> None:
    while await asked(url, 10) != {name}:
        pass


async def test_one_that_loads_answers_while_no_other_has_loaded(tmp_path: Path):
    async with two(tmp_path) as (first, second, url):
        first.start()
        second.start()
        assert await asked(url) <= {"first", "second"}
        second.loaded.set()
        await until_only(url, "second")
        assert await asked(url) == {"second"}
        await second.stop()
        await until_only(url, "first")  # better than nobody


async def test_one_that_is_started_again_waits_until_it_has_loaded(tmp_path: Path):
    async with two(tmp_path) as (first, second, url):
        second.loaded.set()
        second.start()
        await until_only(url, "second")
        first.start()
        own = httpx.AsyncHTTPTransport(uds=str(first.own))
        async with httpx.AsyncClient(transport=own) as client:
            while not first.own.exists():  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.01)
            assert (await client.get("http://gateway/livez")).json() == {"status": "loading"}
        assert await asked(url) == {"second"}
        first.loaded.set()
        while "first" not in await asked(url, 10):
            pass


async def test_callers_of_one_that_stands_back_are_let_go_after_their_answer(tmp_path: Path):
    async with two(tmp_path) as (first, second, url):
        first.start()
        await until_only(url, "first")
        async with httpx.AsyncClient(timeout=WITHIN_S) as client:
            assert (await client.get(url)).text == "first"
            second.loaded.set()
            second.start()
            while (await client.get(url)).text != "second":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)
