"""python ray_server.py PORT: Ray Serve, one replica a model, `@serve.batch`."""

import os
import sys
import threading
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# The only switch that makes the node, with its inner ports, listen on 127.0.0.1.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray
from common import INPUTS, MAX_BATCH, MAX_DELAY_S, feed, session
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=1, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class OnnxModel:
    """One session."""

    def __init__(self, model: str) -> None:
        self._model, self._session = model, session(model)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=MAX_DELAY_S)
    async def run(self, rows: list[dict]) -> list[dict]:
        return [{"y": row.tolist()} for row in self._session.run(None, feed(self._model, rows))[0]]

    async def __call__(self, request: Request) -> dict:
        return await self.run(await request.json())


if __name__ == "__main__":
    carried = {"PYTHONPATH": str(Path(__file__).parent), "BENCH_MODELS": os.environ["BENCH_MODELS"]}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        runtime_env={"env_vars": carried},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for model in INPUTS:
        serve.run(OnnxModel.bind(model), name=model, route_prefix=f"/{model}")
    threading.Event().wait()
