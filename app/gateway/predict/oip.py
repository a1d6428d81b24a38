"""Open Inference Protocol v2 over REST, under /v2."""

import asyncio
import time
from functools import partial
from typing import Any

import orjson

from app.core.errors import NotBuilt, NotFound, Unavailable
from app.core.principal import Scope
from app.gateway.predict.decoding import decode_json
from app.gateway.predict.exchange import JSON, READS, Exchange, MethodNotAllowed, whole_number
from app.gateway.predict.ports import Repository
from app.gateway.predict.repository import RepositoryApi
from app.gateway.predict.running import record, run, whole_body
from app.serving.describe import SERVER, configuration, statistics
from app.serving.effort import are_small
from app.serving.host import Host
from app.serving.large_answer import encode_large
from app.serving.oip_request import may_name_priority
from app.serving.tensors import INLINE_JSON_BYTES
from app.serving.waiting import FIRST_PRIORITY

_BINARY = (b"content-type", b"application/octet-stream")
_LENGTH = b"inference-header-content-length"
# Parts of the protocol's extensions that this release does not have: the answer says so.
_NOT_BUILT_MODEL = {"generate", "generate_stream", "trace"}
_NOT_BUILT_SERVER = {"logging", "trace", "systemsharedmemory", "cudasharedmemory"}


class OipApi:
    """Routes and answers everything under /v2."""

    def __init__(self, host: Host, repository: Repository, max_body: int) -> None:
        self._host = host
        self._repository = RepositoryApi(repository, max_body)
        self._max_body = max_body

    @staticmethod
    def scope(path: str) -> Scope | None:
        """What a key must be allowed to do for this path; None if the path is open."""
        if path.startswith("/v2/health/"):
            return None
        if path.startswith("/v2/repository/models/"):
            return "train"
        return "predict" if path.endswith("/infer") else "read"

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request; errors of the tree are the dispatcher's to answer."""
        match exchange.path.split("/")[2:]:
            case []:
                await self._get(exchange, SERVER)
            case ["health", "live"]:
                await self._get(exchange, {"live": True})
            case ["health", "ready"]:
                if not self._host.ready():
                    raise Unavailable("no model is loaded", retry_after_s=1.0)
                await self._get(exchange, {"ready": True})
            case ["models", "stats"]:
                await self._get(exchange, {"model_stats": [statistics(about) for about in self._host.described()]})
            case ["models", name, "versions", wanted, *rest] if name:
                await self._model(exchange, name, wanted, rest)
            case ["models", name, *rest] if name:
                await self._model(exchange, name, None, rest)
            case ["repository", *rest]:
                await self._repository.answer(exchange, rest)
            case [part, *_] if part in _NOT_BUILT_SERVER:
                raise NotBuilt(f"/v2/{part} is not in this release")
            case _:
                raise NotFound("Not Found")

    async def _model(self, exchange: Exchange, name: str, wanted: str | None, rest: list[str]) -> None:
        match rest:
            case ["infer"]:
                if exchange.method != "POST":
                    raise MethodNotAllowed("POST")
                await self._infer(exchange, name, wanted)
            case []:
                about = self._host.about(name, wanted)
                await self._get(exchange, about.oip.metadata([about.version]))
            case ["ready"]:
                self._host.check(name, wanted)
                await self._get(exchange, {"name": name, "ready": True})
            case ["config"]:
                await self._get(exchange, configuration(self._host.about(name, wanted)))
            case ["stats"]:
                await self._get(exchange, {"model_stats": [statistics(self._host.about(name, wanted))]})
            case [part, *_] if part in _NOT_BUILT_MODEL:
                raise NotBuilt(f"'{part}' of a model is not in this release")
            case _:
                raise NotFound("Not Found")

    async def _infer(self, exchange: Exchange, name: str, wanted: str | None) -> None:
        host = self._host
        served = host.get(name, wanted) or await host.reach(name, wanted, exchange.deadline())
        body = await whole_body(exchange, served, self._max_body, FIRST_PRIORITY)  # it may name that
        with host.get(name, wanted) or await host.reach(name, wanted, exchange.deadline()) as served:
            exchange.metrics = served.metrics
            given = exchange.headers.get(_LENGTH)
            length = None if given is None else whole_number(given, "Inference-Header-Content-Length", "bytes")
            json_bytes = len(body) if length is None else length
            if served.limits.p95_s is not None and not may_name_priority(body, json_bytes):
                served.check_room(exchange.deadline())
            oip = served.oip
            if json_bytes <= INLINE_JSON_BYTES and len(body) - json_bytes <= oip.inline_raw_bytes:
                request = oip.decode(body, length)
            else:
                request = await decode_json(exchange, body, json_bytes, partial(oip.decode, body, length))
            parsed = time.perf_counter()
            answer = await run(exchange, served, request.inputs, request.rows, request.timeout_s, request.priority)
            computed = time.perf_counter()
            outputs = request.outputs
            if request.rows <= oip.inline_rows or are_small(answer.outputs, outputs):
                encoded = oip.encode(answer.outputs, outputs, served.version, request.id)
            else:
                written = (oip, answer.outputs, outputs, served.version, request.id)
                encoded = await asyncio.to_thread(encode_large, *written)
            headers = [JSON]
            if encoded.header_length is not None:
                headers = [_BINARY, (_LENGTH, b"%d" % encoded.header_length)]
            headers += record(exchange, served, answer, parsed, computed)
        if isinstance(encoded.body, bytes):
            await exchange.compressed(200, encoded.body, headers)
        else:
            del body, request, answer, written  # while a slow client takes it
            await exchange.in_pieces(200, encoded.body, headers)

    @staticmethod
    async def _get(exchange: Exchange, document: dict[str, Any]) -> None:
        if exchange.method not in READS:
            raise MethodNotAllowed(", ".join(READS))
        await exchange.answer(200, orjson.dumps(document), [JSON])
