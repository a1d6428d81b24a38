"""MLServer with a custom runtime, one inference worker (its default) and adaptive batching.

It answers binary tensors with 500. Its requirements hold uvloop below 0.22: with a newer one its workers die in
`asyncio.get_event_loop()`.
"""

import json

from bench.peers.open_inference import FORMS, PATH
from bench.peers.peer import Launch, Peer
from bench.peers.servers.common import INPUTS, MAX_BATCH, MAX_DELAY_S


def _prepare(launch: Launch) -> None:
    settings = {
        "host": "127.0.0.1",
        "http_port": launch.ports[0],
        "grpc_port": launch.ports[1],
        "metrics_port": launch.ports[2],
        "metrics_endpoint": None,
        "parallel_workers": 1,
        "debug": False,
    }
    (launch.folder / "settings.json").write_text(json.dumps(settings))
    for model in INPUTS:
        folder = launch.folder / model
        folder.mkdir()
        batching = {"max_batch_size": MAX_BATCH, "max_batch_time": MAX_DELAY_S}
        described = {"name": model, "implementation": "mlserver_runtime.OnnxModel", **batching}
        (folder / "model-settings.json").write_text(json.dumps(described))


def _command(launch: Launch) -> list[str]:
    return [str(launch.python), "-c", "from mlserver.cli import main; main()", "start", str(launch.folder)]


PEER = Peer("mlserver", _command, path=PATH, forms=FORMS, prepare=_prepare)
