"""What every call goes through: the caller's key and scope, and errors as gRPC statuses."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from app.core.errors import AimassError, Unauthenticated
from app.core.ids import new_id
from app.core.principal import Scope
from app.gateway.errors import retry_after
from app.gateway.predict.ports import Authenticator

_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
Result = TypeVar("Result")
_BEARER = "bearer "

CODES: dict[str, grpc.StatusCode] = {
    "invalid_input": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_spec": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_data": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_tensor": grpc.StatusCode.INVALID_ARGUMENT,
    "malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "payload_too_large": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "conflict": grpc.StatusCode.FAILED_PRECONDITION,
    "idempotency_key_reused": grpc.StatusCode.FAILED_PRECONDITION,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_built": grpc.StatusCode.UNIMPLEMENTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "corrupt": grpc.StatusCode.DATA_LOSS,
}


class Guarded(Protocol):
    """A servicer whose calls are guarded."""

    auth: Authenticator


def call(
    scope: Scope | None,
) -> Callable[[Callable[[Any, Any, Context], Awaitable[Result]]], Callable[[Any, Any, Context], Awaitable[Result]]]:
    """A unary call that needs this scope (None: open to all), with errors of the tree as statuses."""

    def guard(
        method: Callable[[Any, Any, Context], Awaitable[Result]],
    ) -> Callable[[Any, Any, Context], Awaitable[Result]]:
        @functools.wraps(method)
        async def guarded(self: Guarded, request: Any, context: Context) -> Result:  # noqa: ANN401 - any message
            try:
                if scope is not None:
                    await admit(self.auth, context, scope)
                return await method(self, request, context)
            except AimassError as error:
                await refuse(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001 - each becomes a status
                await refuse(context, unexpected(error))

        return guarded

    return guard


async def admit(auth: Authenticator, context: Context, scope: Scope) -> None:
    """Unauthenticated without a good key in the metadata, Forbidden if it lacks the scope."""
    key = _key(context)
    principal = auth.cached(key) or await auth.verify(key)
    principal.require(scope)


def unexpected(error: Exception) -> AimassError:
    """The answer to a defect: the log has its trace."""
    request_id = new_id()
    _log.error("request=%s prediction by gRPC failed", request_id, exc_info=error)
    return AimassError(f"internal error; the log has it as request {request_id}")


async def refuse(context: Context, error: AimassError) -> NoReturn:
    """End the call with the error's status; when to try again is trailing metadata, as HTTP's header and as gRPC's."""
    trailing: list[tuple[str, str]] = []
    if error.retry_after_s is not None:
        wait_s = max(0.0, error.retry_after_s)
        trailing = [
            ("retry-after", retry_after(wait_s)),
            ("grpc-retry-pushback-ms", str(round(wait_s * 1e3))),
        ]
    await context.abort(CODES.get(error.code, grpc.StatusCode.INTERNAL), error.detail, tuple(trailing))


def _key(context: Context) -> bytes:
    metadata = dict(context.invocation_metadata() or ())
    key = metadata.get("x-api-key") or ""
    if not key:
        header = metadata.get("authorization") or ""
        key = header[len(_BEARER) :].strip() if header[: len(_BEARER)].lower() == _BEARER else ""
    if not key:
        raise Unauthenticated("send the API key as metadata `authorization: Bearer KEY` or `x-api-key: KEY`")
    return key.encode() if isinstance(key, str) else key
