"""The plain server that everything is compared with: FastAPI as a developer writes it first, one uvicorn worker.

It runs in this repository's own environment.
"""

from bench.peers.peer import SERVERS, Launch, Peer


def _command(launch: Launch) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(launch.ports[0]), "--no-access-log", "--log-level", "warning"]
    return [str(launch.python), "-m", "uvicorn", "--app-dir", str(SERVERS), "naive_app:app", *options]


PEER = Peer("naive", _command, installed=False)
