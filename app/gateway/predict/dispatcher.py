"""The ASGI application in front of FastAPI: it answers predictions itself and passes everything else on.

A request through FastAPI's routing and dependencies costs several times what the prediction does; see the ADR
0003-dispatcher-in-front-of-fastapi.
"""

import logging

from app.core.errors import AimassError, Forbidden
from app.core.principal import Scope as KeyScope
from app.gateway.predict.exchange import ClientGone, Exchange, MethodNotAllowed
from app.gateway.predict.oip import OipApi
from app.gateway.predict.ports import AsgiApp, Authenticator, Receive, Scope, Send
from app.gateway.predict.rest import PredictApi
from app.gateway.trace import name_request
from app.serving.host import Host
from app.settings import ServingSettings

_log = logging.getLogger(__name__)
_PREFIX, _SUFFIX = "/api/v1/endpoints/", "/predict"
_GONE = 499  # what nginx calls it; only ever seen in the metrics


class Dispatcher:
    """Matches the prediction paths; `inner` gets all others, the lifespan and web sockets."""

    def __init__(self, inner: AsgiApp, host: Host, auth: Authenticator, settings: ServingSettings) -> None:
        self._inner = inner
        self._host = host
        self._auth = auth
        max_body = settings.max_body_mb << 20
        self._rest = PredictApi(host, max_body)
        self._oip = OipApi(host, max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection event, as ASGI."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path: str = scope["path"]
        if path.startswith(_PREFIX) and path.endswith(_SUFFIX):
            exchange = Exchange(scope, receive, send)
            await self._guard(exchange, path[len(_PREFIX) : -len(_SUFFIX)])
        elif path.startswith("/v2/") or path == "/v2":
            await self._guard(Exchange(scope, receive, send), None)
        else:
            await self._inner(scope, receive, send)

    async def _guard(self, exchange: Exchange, endpoint: str | None) -> None:
        """Authorise and answer; an error becomes the answer, and is counted."""
        oip = endpoint is None
        try:
            needed: KeyScope | None = self._oip.scope(exchange.path) if oip else "predict"
            if needed is not None:
                await self._authorise(exchange, needed)
            if endpoint is None:
                await self._oip.answer(exchange)
            else:
                await self._rest.predict(exchange, endpoint)
        except AimassError as error:
            await exchange.refuse(error, oip=oip)
            self._count(exchange, error.code)
        except MethodNotAllowed as allowed:
            await exchange.wrong_method(str(allowed), oip=oip)
        except ClientGone:
            exchange.status = _GONE
            self._count(exchange, "client_gone")
        except Exception:
            _log.exception("%s prediction failed", name_request(exchange.request_id, exchange.trace))
            if exchange.status:  # the answer had begun: only the server can end the connection
                raise
            await exchange.refuse(AimassError("internal error; the log has it under this request id"), oip=oip)
            self._count(exchange, "internal")

    async def _authorise(self, exchange: Exchange, needed: KeyScope) -> None:
        key = exchange.key()
        principal = self._auth.cached(key) or await self._auth.verify(key)
        if not principal.may(needed):
            raise Forbidden(f"the key '{principal.name}' lacks the scope '{needed}'")

    def _count(self, exchange: Exchange, code: str) -> None:
        if exchange.metrics is None:
            self._host.metrics.refused[code] += 1
        else:
            exchange.metrics.statuses[exchange.status] += 1
