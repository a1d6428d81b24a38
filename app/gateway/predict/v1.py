"""KServe's V1 protocol, which is TensorFlow Serving's: `/v1/models/{m}:predict` with instances in, predictions out."""

import re
from operator import attrgetter

import orjson

from app.core.errors import NotFound
from app.core.principal import Scope
from app.gateway.predict.exchange import JSON, READS, Exchange, MethodNotAllowed
from app.gateway.predict.running import answer_instances
from app.serving.host import Host, ServedModel

_MODEL = re.compile(r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+))?(?P<predict>:predict)?")

_SIGNATURE = b'"signature_name"'
_FIELD = rb'\s*"signature_name"\s*:\s*"(?:[^"\\]++|\\.)*+"\s*'
_FIRST = re.compile(rb"\s*\{" + _FIELD + b",")
_LAST = re.compile(b"," + _FIELD + rb"\}\s*\Z")
_BLANKS = 64  # between two fields
_LONGEST = 4096  # bytes of the last field: no thread goes on while a body is searched, up to 1.5 ms a MiB


class V1Api:
    """Routes and answers everything under /v1/models."""

    def __init__(self, host: Host, max_body: int) -> None:
        self._host = host
        self._max_body = max_body

    @staticmethod
    def scope(path: str) -> Scope:
        """What a key must be allowed to do for this path."""
        return "predict" if path.endswith(":predict") else "read"

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request; errors of the tree are the dispatcher's to answer."""
        if exchange.path == "/v1/models":
            await _get(exchange, {"models": self._host.endpoints()})
            return
        match = _MODEL.fullmatch(exchange.path)
        if match is None:
            raise NotFound("Not Found")
        name, version = match["name"], match["version"]
        if match["predict"]:
            if exchange.method != "POST":
                raise MethodNotAllowed("POST")
            model = name, version
            await answer_instances(
                exchange, self._host, model, self._max_body, _framed, _without_signature, attrgetter("v1_predictions")
            )
        else:
            self._host.check(name, version)
            await _get(exchange, {"name": name, "ready": True})


def _framed(_served: ServedModel, predictions: bytes) -> bytes:
    return b'{"predictions":%b}' % predictions


def _without_signature(body: bytes) -> bytes:
    """The body without TensorFlow Serving's `signature_name`, whose clients send it first or last; models have one."""
    at = body.rfind(_SIGNATURE, -_LONGEST)
    if at < 0 and len(body) <= _LONGEST:
        return body
    if found := _FIRST.match(body):
        return b"{" + memoryview(body)[found.end() :]
    found = None if at < 0 else _LAST.search(body, max(0, at - _BLANKS))
    return body if found is None else b"".join((memoryview(body)[: found.start()], b"}"))


async def _get(exchange: Exchange, document: dict[str, object]) -> None:
    if exchange.method not in READS:
        raise MethodNotAllowed(", ".join(READS))
    await exchange.answer(200, orjson.dumps(document), [JSON])
