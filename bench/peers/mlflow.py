"""MLflow's scoring server for its ONNX flavour: one worker, one model a process, no batching."""

import os
import subprocess

import orjson

from bench.peers.bodies import Body, Row
from bench.peers.peer import SERVERS, Launch, Peer
from bench.peers.servers.common import INPUTS

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


def _form(row: Row) -> Body:
    inputs = {name: values[None] for name, values in row.items()}
    return 0, orjson.dumps({"inputs": inputs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _prepare(launch: Launch) -> None:
    command = [str(launch.python), str(SERVERS / "mlflow_save.py"), str(launch.folder)]
    subprocess.run(command, check=True, timeout=120, cwd=launch.folder, env=os.environ | launch.environment | _QUIET)


def _command(launch: Launch) -> list[str]:
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(launch.ports[0]), "--workers", "1"]
    return [str(launch.python), "-m", "mlflow", "models", "serve", "-m", str(launch.folder / launch.model), *options]


PEER = Peer(
    "mlflow",
    _command,
    path="/invocations".format,
    forms=dict.fromkeys(INPUTS, _form),
    prepare=_prepare,
    one_model=True,
    environment=_QUIET,
)
