"""Keys, paths and bodies of the models that tests/unit/serving serves."""

import asyncio
import json
from typing import Any

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.gateway.predict.ports import Receive, Scope, Send

GOOD = {"age": 41, "charge €": 2.5, "member": True, "colour": "red"}  # score 41 + 5 + 4 + 10 = 60
PREDICT = "/api/v1/endpoints/churn/predict"
INFER = "/v2/models/churn/infer"
NUMERIC = {"name": "numeric", "datatype": "FP32", "shape": [1, 3], "data": [41, 2.5, 1]}
COLOUR = {"name": "categorical", "datatype": "BYTES", "shape": [1, 1], "data": ["red"]}


class Keys:
    """Three keys; one is known only after it was verified."""

    def __init__(self) -> None:
        self.known = {
            b"good": Principal("1", "good", frozenset({"predict", "read"})),
            b"reader": Principal("2", "reader", frozenset({"read"})),
        }
        self.verified: list[bytes] = []

    def cached(self, key: bytes, /) -> Principal | None:
        return self.known.get(key)

    async def verify(self, key: bytes, /) -> Principal:
        await asyncio.sleep(0)
        self.verified.append(key)
        if key != b"fresh":
            raise Unauthenticated("the API key is unknown or revoked")
        return Principal("3", "fresh", frozenset({"admin"}))


async def inner(scope: Scope, _receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


def body(*instances: Any) -> bytes:
    return json.dumps({"instances": instances}).encode()


def infer(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or (NUMERIC, COLOUR), **more}).encode()
