"""uvicorn's server with what a gateway process adds: a socket of its own, and an end to clients that do not go on."""

import asyncio
import resource
import socket
from pathlib import Path
from typing import cast

import uvicorn

from app.gateway.patience import Connection, Patience


class GatewayServer(uvicorn.Server):
    """Serves `config`, on `own` too if it is given: a unix socket on which no other process answers."""

    def __init__(self, config: uvicorn.Config, own: Path | None, request_timeout_s: float) -> None:
        super().__init__(config)
        self._own = own
        self._patience = Patience(self._connections, request_timeout_s, config.timeout_keep_alive)
        self._looking: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        if self.should_exit:
            return
        self._looking = asyncio.create_task(self._patience.run(), name="patience")
        if self._own is not None:
            server = await asyncio.get_running_loop().create_unix_server(self._protocol, self._own)
            self._own.chmod(0o600)
            self.servers.append(server)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let requests end, stop."""
        await super().shutdown(sockets)
        if self._looking is not None:
            self._looking.cancel()

    def _connections(self) -> set[Connection]:
        return cast("set[Connection]", self.server_state.connections)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]


def allow_connections() -> None:
    """As many open files as this process may have: each connection is one, and the usual limit is a thousand."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
