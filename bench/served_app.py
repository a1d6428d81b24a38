"""The dispatcher and nothing behind it: what the benchmark measures of the product. BENCH_FOLDER holds the models."""

import os
from pathlib import Path

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.gateway.predict.dispatcher import Dispatcher
from app.gateway.predict.ports import Receive, Scope, Send
from app.serving.host import Batching, Host, ModelSource
from app.settings import ServingSettings

FOLDER = Path(os.environ["BENCH_FOLDER"])
KEY = b"bench-key"


class StaticKeys:
    """One key, so that authentication is part of what is measured."""

    def __init__(self) -> None:
        self._principals = {KEY: Principal("1", "bench", frozenset({"read", "predict"}))}

    def cached(self, key: bytes, /) -> Principal | None:
        """The principal of the key."""
        return self._principals.get(key)

    async def verify(self, key: bytes, /) -> Principal:
        """Refuse: what is not cached does not exist."""
        raise Unauthenticated(f"unknown key of {len(key)} bytes")


settings = ServingSettings()
host = Host(settings)


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Load at start, drain at the end; any other path does not exist here."""
    while scope["type"] == "lifespan":
        event = (await receive())["type"]
        if event == "lifespan.startup":
            for name in ("table", "cnn"):
                folder = FOLDER / name
                limits = Batching(settings.max_batch, settings.max_queue)
                served = await host.load(ModelSource(name, name, 1, "fp32", folder, folder / "model.onnx", limits))
                plan = served.plan
                print(f"{name}: inline={plan.inline} lanes={plan.lanes} alone={plan.alone is not None}", flush=True)
                await host.swap(served)
        else:
            await host.close()
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


app = Dispatcher(_lifespan, host, StaticKeys(), settings)
