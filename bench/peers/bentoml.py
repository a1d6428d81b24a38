"""BentoML: one worker, batchable methods under its adaptive batcher; logs requests, by default."""

import numpy as np
import orjson

from bench.peers.bodies import Body, Row, batch_of_one
from bench.peers.peer import SERVERS, Launch, Peer


def _stacked(row: Row) -> Body:
    """Ids and mask in one array, as a batchable method takes one parameter."""
    stacked = np.stack([row["input_ids"], row["attention_mask"]])[None]
    return 0, orjson.dumps({"x": stacked}, option=orjson.OPT_SERIALIZE_NUMPY)


def _command(launch: Launch) -> list[str]:
    service = ["serve", "bentoml_service:Service", "--working-dir", str(SERVERS)]
    return [str(launch.python), "-m", "bentoml", *service, "--host", "127.0.0.1", "--port", str(launch.ports[0])]


PEER = Peer(
    "bentoml",
    _command,
    forms={"mlp": batch_of_one, "cnn": batch_of_one, "encoder": _stacked},
    environment={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "{folder}/home"},
)
