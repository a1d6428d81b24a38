"""What every call goes through: the caller's key and scope, its deadline, and errors as gRPC statuses."""

import asyncio
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import grpc

from app.core.errors import AimassError, DeadlineExceeded, Unauthenticated
from app.core.ids import new_id
from app.core.principal import Principal, Scope
from app.gateway.errors import retry_after
from app.gateway.predict.exchange import whole_number
from app.gateway.predict.ports import Authenticator
from app.serving.host import ServedModel

_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
Metadata = dict[str, str | bytes]
Result = TypeVar("Result")
_BEARER = "bearer "
_TIMEOUT = "x-request-timeout-ms"
# gRPC rounds a deadline up on its way here, by a hundredth at most: by the client's clock it passes a little earlier.
_ROUNDED, _ROUNDED_S = 0.01, 0.01
SCOPES: dict[str, Scope | None] = {}  # what a key must be allowed to do for a method; None: any key may call it

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
    "insufficient_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "corrupt": grpc.StatusCode.DATA_LOSS,
}


class Call:
    """One request, from when it was received; `served` and `phases` become known on the way."""

    __slots__ = ("context", "metadata", "method", "phases", "served", "started")

    def __init__(self, context: Context, method: str) -> None:
        self.started = time.perf_counter()
        self.context = context
        self.method = method
        self.metadata: Metadata = dict(context.invocation_metadata() or ())
        self.served: ServedModel | None = None
        self.phases: tuple[float, ...] = ()  # of a prediction that was answered, in the order of PHASES, in seconds

    def deadline(self) -> float:
        """When the caller stops waiting, on `perf_counter`'s clock: gRPC's deadline or the metadata's, the earlier.

        Malformed if the metadata's is not a whole number of milliseconds.
        """
        deadline = math.inf
        if (given := self.metadata.get(_TIMEOUT)) is not None:
            millis = whole_number(given.encode() if isinstance(given, str) else given, _TIMEOUT, "milliseconds")
            deadline = self.started + millis / 1e3
        left_s = self.context.time_remaining()
        return deadline if left_s is None else min(deadline, time.perf_counter() + left_s)

    def late(self) -> bool:
        """True of a call that was cancelled at its deadline: the client's library does so, and so does the server's."""
        left_s = self.context.time_remaining()
        given_s = time.perf_counter() - self.started + (left_s or 0.0)
        return left_s is not None and left_s <= _ROUNDED_S + _ROUNDED * given_s


class Guarded(Protocol):
    """A servicer whose calls are guarded."""

    auth: Authenticator

    def ended(self, call: Call, status: grpc.StatusCode, error: AimassError | None = None) -> None:
        """Take note of how a call has ended; must not wait. Of one whose client has gone: CANCELLED, and no error."""


Method = Callable[[Any, Any, Call], Awaitable[Result]]
Given = TypeVar("Given", bound=Callable[..., Any])


def needs(scope: Scope | None) -> Callable[[Given], Given]:
    """Declare what a key must be allowed to do for a method, which has the protocol's name."""

    def declare(method: Given) -> Given:
        SCOPES[method.__name__] = scope
        return method

    return declare


def call(scope: Scope | None) -> Callable[[Method[Result]], Callable[[Any, Any, Context], Awaitable[Result | None]]]:
    """A unary call that needs this scope (None: open to all), with errors of the tree as statuses."""

    def guard(method: Method[Result]) -> Callable[[Any, Any, Context], Awaitable[Result | None]]:
        async def admitted(self: Guarded, request: Any, made: Call) -> Result:  # noqa: ANN401 - any message
            if scope is not None:
                await admit(self.auth, made, scope)
            return await method(self, request, made)

        @functools.wraps(method)
        async def guarded(self: Guarded, request: Any, context: Context) -> Result | None:  # noqa: ANN401 - any message
            made = Call(context, method.__name__)
            try:
                return await observed(self, made, admitted(self, request, made))
            except AimassError as error:
                refuse(context, error)
                return None

        return needs(scope)(guarded)

    return guard


async def observed(servicer: Guarded, made: Call, answer: Awaitable[Result]) -> Result:
    """The answer, or an error of the tree for whatever went wrong; the servicer is told how it ended."""
    try:
        result = await answer
    except asyncio.CancelledError:
        cancelled(servicer, made)
        raise
    except AimassError as error:
        servicer.ended(made, status_of(error), error)
        raise
    except Exception as error:  # noqa: BLE001 - it is raised again, told apart
        told = unexpected(error)
        servicer.ended(made, status_of(told), told)
        try:
            raise told from error
        finally:
            del told  # its traceback has this frame: a cycle, with all of a message in it until the next collection
    servicer.ended(made, grpc.StatusCode.OK)
    return result


def cancelled(servicer: Guarded, made: Call) -> None:
    """Tell the servicer of a call that nobody waits for: its deadline has passed, or its client has gone."""
    if made.late():
        servicer.ended(made, grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded("the call's deadline has passed"))
    else:
        servicer.ended(made, grpc.StatusCode.CANCELLED)


def turn_away(servicer: Guarded, made: Call, error: AimassError) -> None:
    """End a call with an error: the servicer is told, and its caller once its method returns."""
    servicer.ended(made, status_of(error), error)
    refuse(made.context, error)


async def admit(auth: Authenticator, made: Call, scope: Scope) -> None:
    """Unauthenticated without a good key in the metadata, Forbidden if it lacks the scope."""
    (await authenticate(auth, made.metadata)).require(scope)


async def authenticate(auth: Authenticator, metadata: Metadata) -> Principal:
    """Who calls; Unauthenticated without a good key in the metadata."""
    key = _key(metadata)
    return auth.cached(key) or await auth.verify(key)


def status_of(error: AimassError) -> grpc.StatusCode:
    """The status that an error is answered with."""
    return CODES.get(error.code, grpc.StatusCode.INTERNAL)


def unexpected(error: Exception) -> AimassError:
    """The answer to a defect: the log has its trace."""
    request_id = new_id()
    _log.error("request=%s prediction by gRPC failed", request_id, exc_info=error)
    return AimassError(f"internal error; the log has it as request {request_id}")


def refuse(context: Context, error: AimassError) -> None:
    """The call ends with the error's status once its method returns, whatever that returns.

    When to try again is trailing metadata, as HTTP's header and as gRPC's. `abort` would raise, and the library keeps
    what it raises: with the message, in its traceback, and in a cycle.
    """
    if error.retry_after_s is not None:
        wait_s = max(0.0, error.retry_after_s)
        context.set_trailing_metadata(
            (
                ("retry-after", retry_after(wait_s)),
                ("grpc-retry-pushback-ms", str(round(wait_s * 1e3))),
            )
        )
    context.set_code(status_of(error))
    context.set_details(error.detail)


def _key(metadata: Metadata) -> bytes:
    key = metadata.get("x-api-key") or ""
    if not key:
        header = metadata.get("authorization") or ""
        key = header[len(_BEARER) :].strip() if header[: len(_BEARER)].lower() == _BEARER else ""
    if not key:
        raise Unauthenticated("send the API key as metadata `authorization: Bearer KEY` or `x-api-key: KEY`")
    return key.encode() if isinstance(key, str) else key
