"""One gateway process: `python -m app.gateway.main [--fd N --number N]`."""

import argparse
import gc
import os
import socket
import sys

import uvicorn

from app.core.errors import Misconfigured
from app.core.process import die_with_parent
from app.gateway.app import create_app
from app.gateway.beside import other_sockets
from app.gateway.grpc.server import check_port
from app.gateway.predict.protocol import JoiningProtocol
from app.gateway.server import GatewayServer, allow_connections
from app.services.check_settings import check_settings
from app.settings import Settings
from app.telemetry.log import configure_logging

BACKLOG = 2048


def main() -> None:
    """Serve until SIGTERM; with --fd on the launcher's own socket, so that a restart refuses no connection."""
    parser = argparse.ArgumentParser(prog="python -m app.gateway.main", description=__doc__)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--number", type=int, help="of this process under its launcher")
    arguments = parser.parse_args()
    parent = os.environ.pop("AIMASS_LAUNCHER_PID", None)
    if parent:
        die_with_parent(int(parent))
    settings = Settings()
    configure_logging(settings.log_level)
    try:
        check_settings(settings)
        check_port(settings.gateway)
        application, loaded = create_app(settings, arguments.number)
    except Misconfigured as error:
        sys.exit(f"aimass: {error.detail}")
    config = uvicorn.Config(
        application,
        host=settings.gateway.host,
        port=settings.gateway.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        loop="uvloop",
        http=JoiningProtocol,
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=round(settings.gateway.drain_s),
        proxy_headers=False,  # nothing here asks where a request came from, and the look costs each of them
        server_header=False,
        date_header=False,
    )
    sockets = [socket.socket(fileno=arguments.fd)] if arguments.fd is not None else None
    own = settings.gateway_socket(arguments.number) if arguments.number is not None else None
    others = list(other_sockets(settings, arguments.number).values())
    allow_connections()
    gc.freeze()
    GatewayServer(config, own, others, loaded, settings.gateway.request_timeout_s).run(sockets)


if __name__ == "__main__":
    main()
