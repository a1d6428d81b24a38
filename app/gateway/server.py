"""uvicorn's server with what a gateway process adds: a socket of its own, and an end to clients that do not go on.

Processes of one launcher share a listening socket. While a process loads its endpoints and another has loaded them, it
leaves the connections to that one; where none has, it answers for itself, so that a probe is answered and not kept.
"""

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Collection
from pathlib import Path
from typing import cast

import uvicorn

from app.gateway.beside import any_loaded
from app.gateway.patience import Patience
from app.gateway.predict.protocol import JoiningProtocol

log = logging.getLogger("aimass.gateway")
_LOOK_S = 0.1  # between two looks at whether another process has loaded


class GatewayServer(uvicorn.Server):
    """Serves `config`, on `own` too if it is given: a unix socket on which no other process answers.

    `others` are those of the processes that share the listening socket; `loaded` is set once this one has loaded.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        own: Path | None,
        others: Collection[Path],
        loaded: asyncio.Event,
        request_timeout_s: float,
    ) -> None:
        super().__init__(config)
        self._own = own
        self._others = others
        self._loaded = loaded
        self._sharing: asyncio.Task[None] | None = None
        self._patience = Patience(self._connections, request_timeout_s, config.timeout_keep_alive)
        self._looking: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; on a socket that others share in turn with them."""
        shared = sockets if sockets and self._others else []
        await super().startup([] if shared else sockets)
        if self.should_exit:
            return
        self._looking = asyncio.create_task(self._patience.run(), name="patience")
        if self._own is not None:
            server = await asyncio.get_running_loop().create_unix_server(self._protocol, self._own)
            self._own.chmod(0o600)
            self.servers.append(server)
        if shared:
            self._sharing = asyncio.create_task(self._share(shared[0]), name="shared socket")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let requests end, stop."""
        if self._sharing is not None:
            self._sharing.cancel()
        await super().shutdown(sockets)
        if self._looking is not None:
            self._looking.cancel()

    async def _share(self, listener: socket.socket) -> None:
        """Listen from now on if this process has loaded; until then, while no other has."""
        loop, server = asyncio.get_running_loop(), None
        while True:
            loaded = self._loaded.is_set()
            if not loaded and await any_loaded(self._others):
                if server is not None:
                    self.servers.remove(server)
                    server.close()
                    server = None
                self._send_away()
            elif server is None:  # closing it closes its socket, and the common one is needed again
                try:
                    server = await loop.create_server(self._protocol, sock=listener.dup(), backlog=self.config.backlog)
                except OSError:  # no file is left, for one
                    log.exception("cannot listen on the common port; trying again")
                    await asyncio.sleep(_LOOK_S)
                    continue
                self.servers.append(server)
            if loaded:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._loaded.wait(), _LOOK_S)

    def _send_away(self) -> None:
        """Close connections after the answer that they wait for: what they ask next, another process can answer."""
        for connection in self._connections().copy():
            if connection.begun and not connection.reads_head:  # what comes first may be on its way
                connection.shutdown()

    def _connections(self) -> set[JoiningProtocol]:
        return cast("set[JoiningProtocol]", self.server_state.connections)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def allow_connections() -> None:
    """As many open files as this process may have: each connection is one, and the usual limit is a thousand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
