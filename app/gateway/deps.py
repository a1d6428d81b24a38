"""What endpoints ask for: the process's state, the caller, a page of a list, an idempotency key."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.core.errors import InvalidInput, Unauthenticated
from app.core.principal import Principal, Scope
from app.gateway.auth import KeyCache
from app.gateway.loading import Loader
from app.gateway.probes.exposition import Exposition
from app.gateway.probes.jobs import JobMetrics
from app.gateway.processes import Processes
from app.gateway.query import check_query
from app.services.idempotent import MAX_KEY_LENGTH, Once, once
from app.services.platform import Platform
from app.serving.host import Host
from app.specs.base import MAX_VERSION, NAME_PATTERN
from app.telemetry.spans import Exporter

MAX_PAGE = 500
_bearer_scheme = HTTPBearer(auto_error=False, description="An API key")
_header_scheme = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key")


@dataclass(frozen=True, slots=True)
class Gateway:
    """Everything that one gateway process holds."""

    platform: Platform
    host: Host
    keys: KeyCache
    loader: Loader
    processes: Processes
    exposition: Exposition
    job_metrics: JobMetrics
    exporter: Exporter | None


async def gateway(request: Request) -> Gateway:
    """The process's state. A coroutine, like every dependency here: FastAPI runs plain functions in a thread."""
    found: Gateway = request.app.state.gateway
    return found


GatewayDep = Annotated[Gateway, Depends(gateway)]


Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer_scheme)]
HeaderKey = Annotated[str | None, Depends(_header_scheme)]


async def principal_of(state: Gateway, bearer: HTTPAuthorizationCredentials | None, header: str | None) -> Principal:
    """Whose key it is. Unauthenticated without a good one."""
    secret = header or (bearer.credentials if bearer else None)
    if not secret:
        raise Unauthenticated("send the API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
    key = secret.encode("latin-1", "replace")
    return state.keys.cached(key) or await state.keys.verify(key)


def require(scope: Scope) -> Callable[..., Awaitable[Principal]]:
    """A dependency that gives the caller, who must have the scope, and then must ask for what there is."""

    async def caller(request: Request, state: GatewayDep, bearer: Bearer, header: HeaderKey) -> Principal:
        principal = await principal_of(state, bearer, header)
        principal.require(scope)
        check_query(request)
        return principal

    return caller


Reader = Annotated[Principal, Depends(require("read"))]
Trainer = Annotated[Principal, Depends(require("train"))]
Admin = Annotated[Principal, Depends(require("admin"))]


@dataclass(frozen=True, slots=True)
class PageQuery:
    """`?limit=&cursor=`."""

    limit: int
    cursor: str | None


async def _page(
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="items a page")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> PageQuery:
    return PageQuery(limit, cursor)


PageDep = Annotated[PageQuery, Depends(_page)]


VersionPath = Annotated[int, Path(ge=1, le=MAX_VERSION)]


def number_cursor(page: PageQuery) -> str | None:
    """The cursor of a list that is ordered by version number. InvalidInput if it is none."""
    if page.cursor is not None and not re.fullmatch("[0-9]{1,9}", page.cursor):
        raise _no_cursor()
    return page.cursor


def id_cursor(page: PageQuery) -> str | None:
    """The cursor of a list that is ordered by id. InvalidInput if it is none."""
    if page.cursor is not None and not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", page.cursor):
        raise _no_cursor()
    return page.cursor


def name_cursor(page: PageQuery) -> str | None:
    """The cursor of a list that is ordered by name. InvalidInput if it is none."""
    if page.cursor is not None and not re.fullmatch(NAME_PATTERN, page.cursor):
        raise _no_cursor()
    return page.cursor


def _no_cursor() -> InvalidInput:
    return InvalidInput.at("cursor", msg="is not a cursor of this list; use next_cursor of the page before")


async def _key(
    key: Annotated[
        str | None, Header(alias="Idempotency-Key", max_length=MAX_KEY_LENGTH, description="makes a retry safe")
    ] = None,
) -> str | None:
    return key


IdempotencyKey = Annotated[str | None, Depends(_key)]


def only_once(principal: Principal, key: str | None, request: Request, body: Any) -> Once:  # noqa: ANN401 - any JSON
    """The request as `create_once` knows it."""
    return once(principal, key, f"{request.method} {request.url.path}", body)
