"""What the harness has to know about a server that is not ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.bodies import Form, plain

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True)
class Launch:
    """Of one start: the environment's interpreter, an empty folder, ports of which the first is to answer HTTP."""

    python: Path
    folder: Path
    models: Path
    ports: list[int]
    model: str  # which one, for a server that has one model

    @property
    def environment(self) -> dict[str, str]:
        """What scripts in `servers/` need."""
        return {"BENCH_MODELS": str(self.models), "PYTHONPATH": str(SERVERS)}


def script(name: str) -> Callable[[Launch], list[str]]:
    """The command of a peer that is a script with the port as its argument."""
    return lambda launch: [str(launch.python), str(SERVERS / name), str(launch.ports[0])]


def application(folder: Path, name: str) -> Callable[[Launch], list[str]]:
    """The command of an ASGI application, `module:name` in a folder, in one uvicorn worker."""
    return lambda launch: [
        str(launch.python), "-m", "uvicorn", "--app-dir", str(folder), name, "--host", "127.0.0.1", "--port",
        str(launch.ports[0]), "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip


@dataclass(frozen=True)
class Peer:
    """How to start and address one server. If it is installed, its packages are those of `requirements/{name}.txt`."""

    name: str
    command: Callable[[Launch], list[str]]
    path: Callable[[str], str] = "/{}".format  # model → where its predictions are
    forms: Mapping[str, Form] = field(default_factory=dict)  # of the JSON bodies, by model, if not `plain`
    binary: bool = False  # takes the binary tensors of the Open Inference Protocol
    one_model: bool = False  # a process serves one model
    installed: bool = True  # in an environment of its own; or it runs in this repository's
    prepare: Callable[[Launch], None] | None = None  # before the command; into the folder
    environment: Mapping[str, str] = field(default_factory=dict)  # {folder} in a value is the launch's

    def form(self, model: str) -> Form:
        """What makes this server's JSON body."""
        return self.forms.get(model, plain)
