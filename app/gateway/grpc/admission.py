"""Before a call's message is received: its key. And of messages together: how many bytes a process holds.

gRPC's library hands a method its message whole, however large, so what may come has to be settled around it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from app.core.errors import AimassError, DeadlineExceeded, Malformed, Overloaded
from app.core.principal import Principal
from app.gateway.grpc.calls import SCOPES, Call, Context, Guarded, authenticate, cancelled, turn_away, unexpected
from app.gateway.grpc.places import Places
from app.gateway.predict.bodies import Bodies

OPEN = frozenset({"ServerLive", "ServerReady"})  # to callers without a key
_RETRY_S = 1.0
_LARGE = 1 << 20  # bytes of a message after which memory is given back, once nothing is held
Handler = Any  # grpc.RpcMethodHandler, of which the stubs know no attributes
Method = Callable[[Any, Context], Awaitable[Any]]


class Admission(grpc.aio.ServerInterceptor):
    """Turns away who may not call, unheard, and counts messages of unary calls until they are answered.

    How much of a message has come is not known before it is whole, so each that is being received may be as large as
    any: there are `places` for so many, half of them for one key, `limit_s` each. Others are not read meanwhile, which
    leaves them with their clients but for a window of HTTP/2.
    """

    def __init__(self, servicer: Guarded, bodies: Bodies, places: int, limit_s: float) -> None:
        self._servicer = servicer
        self._bodies = bodies
        self.places = Places(places, max(1, places // 2))
        self.limit_s = limit_s

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """What answers the call; nothing of it is received before a method reads."""
        handler, method = await continuation(details), str(details.method).rpartition("/")[2]
        if handler is None:
            return None
        # Unary calls too are answered as streams of one: a method of theirs is not asked before its message is there.
        if method in OPEN:
            unread = partial(_unread, handler.unary_unary)
            return grpc.stream_unary_rpc_method_handler(unread, None, handler.response_serializer)
        try:
            principal = await authenticate(self._servicer.auth, dict(details.invocation_metadata or ()))
            if (scope := SCOPES.get(method)) is not None:
                principal.require(scope)
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            told = error if isinstance(error, AimassError) else unexpected(error)
            return grpc.stream_stream_rpc_method_handler(partial(self._denied, method, told))
        decode = partial(_decode, method, handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(handler.stream_stream, decode, handler.response_serializer)
        received = partial(self._received, method, handler.unary_unary, principal)
        return grpc.stream_unary_rpc_method_handler(received, partial(_sized, decode), handler.response_serializer)

    async def _denied(self, method: str, error: AimassError, _requests: object, context: Context) -> None:
        turn_away(self._servicer, Call(context, method), error)

    async def _received(
        self, method: str, answer: Method, principal: Principal, _requests: object, context: Context
    ) -> Any:  # noqa: ANN401 - any message
        try:
            request, size = await self._receive(method, principal, context)
            if size > _LARGE:  # the library receives it in small pieces, which stay in the heap
                self._bodies.trim_later()
            with self._bodies.holding(size):
                return await answer(request, context)
        except AimassError as error:  # of what is done here: a method answers its own
            turn_away(self._servicer, Call(context, method), error)
            return None

    async def _receive(self, method: str, principal: Principal, context: Context) -> tuple[Any, int]:
        """The message and its bytes.

        Overloaded if there is no place for it in time, DeadlineExceeded if it does not come, Malformed if it is none.
        """
        try:
            if (turn := self.places.enter(principal.key_id)) is not None:
                await self._wait(turn, principal)
            try:
                async with asyncio.timeout(self.limit_s):
                    message = await context.read()
            finally:
                self.places.leave(principal.key_id)
            if message is grpc.aio.EOF:
                await asyncio.sleep(0)  # so ends a call that its client has cancelled, too, which is told right after
                raise Malformed("the call has ended without a message")
        except TimeoutError:
            text = f"the message was not whole within {self.limit_s:g} s (AIMASS_GATEWAY_REQUEST_TIMEOUT_S)"
            raise DeadlineExceeded(text) from None
        except asyncio.CancelledError:
            cancelled(self._servicer, Call(context, method))
            raise
        found: tuple[Any, int] = message
        return found

    async def _wait(self, turn: asyncio.Future[None], principal: Principal) -> None:
        """Until it is this call's turn; Overloaded if it does not come in time."""
        key_id = principal.key_id
        try:
            async with asyncio.timeout(self.limit_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.places.leave(key_id)
            if not isinstance(error, TimeoutError):
                raise
            taken = self.places.taken
            raise Overloaded(
                f"for {self.limit_s:g} s messages have been received that are large or whose clients are slow, "
                f"{taken.total()} at once, {taken[key_id]} of them with the key '{principal.name}'; as many may be as "
                "AIMASS_LIMIT_BODIES_MB is over AIMASS_SERVING_MAX_BODY_MB, half of them with one key",
                retry_after_s=_RETRY_S,
            ) from None


async def _unread(answer: Method, _requests: object, context: Context) -> Any:  # noqa: ANN401 - any message
    """The answer to whatever was sent, which is not received: who has no key could send much."""
    return await answer(None, context)


def _decode(method: str, deserialize: Callable[[bytes], Any], data: bytes) -> Any:  # noqa: ANN401 - any message
    """The message; Malformed if the bytes are none."""
    try:
        return deserialize(data)
    except (DecodeError, ValueError):
        del data  # the error's trace would keep it
        raise Malformed(
            f"the message is not one of {method}: send its request as a protocol buffer, with texts in UTF-8"
        ) from None


def _sized(decode: Callable[[bytes], Any], data: bytes) -> tuple[Any, int]:
    return decode(data), len(data)
