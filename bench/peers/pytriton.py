"""Triton as NVIDIA packages it for Python: JSON and binary tensors, its dynamic batcher without a delay."""

from bench.peers.open_inference import FORMS, PATH
from bench.peers.peer import SERVERS, Launch, Peer


def _command(launch: Launch) -> list[str]:
    return [str(launch.python), str(SERVERS / "pytriton_server.py"), *map(str, launch.ports[:2])]


def _prepare(launch: Launch) -> None:
    (launch.folder / "home").mkdir()


PEER = Peer(
    "pytriton",
    _command,
    path=PATH,
    forms=FORMS,
    binary=True,
    prepare=_prepare,
    environment={"PYTRITON_HOME": "{folder}/home"},
)
