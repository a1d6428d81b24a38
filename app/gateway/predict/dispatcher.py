"""The ASGI application in front of FastAPI: it answers predictions itself and passes everything else on.

A request through FastAPI's routing and dependencies costs several times what the prediction does; see the ADR
0003-dispatcher-in-front-of-fastapi.
"""

import logging
import re
import time

from app.core.errors import AimassError
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.exchange import ClientGone, Exchange, MethodNotAllowed
from app.gateway.predict.oip import OipApi
from app.gateway.predict.ports import AsgiApp, Authenticator, Receive, Repository, Scope, Send
from app.gateway.predict.rest import PredictApi
from app.gateway.predict.v1 import V1Api
from app.gateway.trace import begin_trace, export, name_request
from app.serving.host import Host
from app.settings import ServingSettings
from app.telemetry.metrics import CLIENT_GONE, PHASES
from app.telemetry.spans import Exporter

_log = logging.getLogger(__name__)
_PREFIX, _SUFFIX = "/api/v1/endpoints/", "/predict"
_SHORTEST = len(_PREFIX) + len(_SUFFIX)  # a name is between them: they overlap in the path of an endpoint `predict`
_NAME = re.compile(r"^((?:/api/v1/endpoints|/v[12](?:/repository)?/models)/)[^/:]+")
_VERSION = re.compile(r"(/versions/)[^/]+")
_BODIES = 16  # of the largest size that are held at once, where nothing else is said


class Dispatcher:
    """Matches the prediction paths; `inner` gets all others, the lifespan and web sockets."""

    def __init__(
        self,
        inner: AsgiApp,
        host: Host,
        auth: Authenticator,
        repository: Repository,
        settings: ServingSettings,
        exporter: Exporter | None = None,
        bodies: Bodies | None = None,
    ) -> None:
        self._inner = inner
        self._host = host
        self._auth = auth
        self._exporter = exporter
        max_body = settings.max_body_mb << 20
        self._bodies = bodies or Bodies(_BODIES * max_body)
        self._rest = PredictApi(host, max_body)
        self._oip = OipApi(host, repository, max_body)
        self._v1 = V1Api(host, max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection event, as ASGI."""
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(_PREFIX) and path.endswith(_SUFFIX) and len(path) > _SHORTEST:
            endpoint: str | None = path[len(_PREFIX) : -len(_SUFFIX)]
        elif path.startswith(("/v2/", "/v1/models")) or path == "/v2":
            endpoint = None
        else:
            await self._inner(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._bodies)
        if self._exporter is not None and exchange.trace is None:
            exchange.trace = begin_trace(self._exporter)
        try:
            other = self._v1 if path.startswith("/v1/") else self._oip
            needed = "predict" if endpoint is not None else other.scope(path)
            if needed is not None:
                key = exchange.key()
                principal = self._auth.cached(key) or await self._auth.verify(key)
                principal.require(needed)
            if endpoint is None:
                await other.answer(exchange)
            else:
                await self._rest.predict(exchange, endpoint)
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            await self._failed(exchange, error, oip=endpoint is None)
        finally:
            if exchange.held:
                self._bodies.give_back(exchange.held)
        if self._exporter is not None:
            _export(self._exporter, exchange)

    async def _failed(self, exchange: Exchange, error: Exception, *, oip: bool) -> None:
        """Make an error the answer, and count it."""
        if isinstance(error, MethodNotAllowed):
            await exchange.wrong_method(str(error), oip=oip)
            return
        code = "internal"
        if isinstance(error, AimassError):
            code = error.code
            await exchange.refuse(error, oip=oip)
        elif isinstance(error, ClientGone):
            code, exchange.status = "client_gone", CLIENT_GONE
        else:
            _log.error("%s prediction failed", name_request(exchange.request_id, exchange.trace), exc_info=error)
            if exchange.status:  # the answer had begun: only the server can end the connection
                raise error
            await exchange.refuse(AimassError("internal error; the log has it under this request id"), oip=oip)
        if exchange.metrics is None:
            self._host.metrics.refused[code] += 1
        else:
            exchange.metrics.statuses[exchange.status] += 1


def route_of(path: str) -> str:
    """The path with `{name}` and `{version}` for what the caller named in it."""
    return _VERSION.sub(r"\1{version}", _NAME.sub(r"\1{name}", path))


def _export(exporter: Exporter, exchange: Exchange) -> None:
    """The request as a span: named by its route, so that all requests to all models are one name."""
    trace, counted, path = exchange.trace, exchange.metrics, exchange.path
    if trace is None:
        return
    told = {"http.request.method": exchange.method, "url.path": path, "aimass.request_id": exchange.request_id}
    if counted is not None:
        endpoint, model, version, variant = counted.labels
        told |= {"aimass.endpoint": endpoint, "aimass.model": model}
        told |= {"aimass.version": version, "aimass.variant": variant}
    phases = list(zip(PHASES, exchange.phases, strict=False))  # none of a request that failed
    seconds = time.perf_counter() - exchange.started
    export(exporter, trace, f"{exchange.method} {route_of(path)}", seconds, exchange.status, told, phases)
