"""TorchServe: a Java front end (needs Java 17), one Python worker a model with a custom handler, batches of its own."""

import os
import subprocess

from bench.peers.peer import SERVERS, Launch, Peer
from bench.peers.servers.common import INPUTS, MAX_BATCH, MAX_DELAY_S

_ARCHIVE = "from model_archiver.model_packaging import generate_model_archive; generate_model_archive()"
_START = "from ts.model_server import start; start()"


def _prepare(launch: Launch) -> None:
    store = launch.folder / "store"
    store.mkdir()
    limits = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": MAX_BATCH,
        "maxBatchDelay": round(MAX_DELAY_S * 1e3),
        "responseTimeout": 60,
    }
    config = launch.folder / "model.yaml"
    config.write_text("".join(f"{key}: {value}\n" for key, value in limits.items()))
    for model in INPUTS:
        options = ["--model-name", model, "--version", "1.0", "--handler", str(SERVERS / "torchserve_handler.py")]
        options += ["--config-file", str(config), "--export-path", str(store)]
        options += ["--extra-files", str(SERVERS / "common.py")]
        environment = os.environ | launch.environment
        subprocess.run([str(launch.python), "-c", _ARCHIVE, *options], check=True, timeout=60, env=environment)
    (launch.folder / "config.properties").write_text(_properties(launch))


def _properties(launch: Launch) -> str:
    http, management, metrics, grpc, grpc_management = launch.ports[:5]
    settings = {
        "inference_address": f"http://127.0.0.1:{http}",
        "management_address": f"http://127.0.0.1:{management}",
        "metrics_address": f"http://127.0.0.1:{metrics}",
        "grpc_inference_address": "127.0.0.1",
        "grpc_inference_port": grpc,
        "grpc_management_address": "127.0.0.1",
        "grpc_management_port": grpc_management,
        "model_store": launch.folder / "store",
        "load_models": "all",
        "disable_token_auth": "true",
        "enable_envvars_config": "false",
        "job_queue_size": 2000,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _command(launch: Launch) -> list[str]:
    options = ["--start", "--foreground", "--disable-token-auth"]
    options += ["--ts-config", str(launch.folder / "config.properties"), "--model-store", str(launch.folder / "store")]
    return [str(launch.python), "-c", _START, *options]


PEER = Peer(
    "torchserve",
    _command,
    path="/predictions/{}".format,
    prepare=_prepare,
    environment={"TEMP": "{folder}", "LOG_LOCATION": "{folder}/logs", "METRICS_LOCATION": "{folder}/logs"},
)
