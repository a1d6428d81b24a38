"""Before a call's message is received: its key. And of messages together: how many bytes a process holds.

gRPC's library hands a method its message whole, however large, so what may come has to be settled around it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from app.core.errors import AimassError, DeadlineExceeded, Malformed, Overloaded
from app.core.principal import Principal
from app.gateway.grpc.calls import SCOPES, Call, Context, Guarded, authenticate, cancelled, turn_away, unexpected
from app.gateway.predict.bodies import Bodies
from app.serving.process_memory import trim

OPEN = frozenset({"ServerLive", "ServerReady"})  # to callers without a key
_AT_ONCE_S = 0.1  # a message that takes longer is large, or its client is slow
_ONCE_MORE_S = 0.01
_RETRY_S = 1.0
_LARGE = 1 << 20  # bytes of a message after which memory is given back, once nothing is held
_QUIET_S = 1.0
Handler = Any  # grpc.RpcMethodHandler, of which the stubs know no attributes
Method = Callable[[Any, Context], Awaitable[Any]]


class Admission(grpc.aio.ServerInterceptor):
    """Turns away who may not call, unheard, and counts messages of unary calls until they are answered.

    `slow` messages may be under way for more than a moment, half of them with the same key, `limit_s` each: what has
    come of them is not known, so each may be as large as any.
    """

    def __init__(self, servicer: Guarded, bodies: Bodies, slow: int, limit_s: float) -> None:
        self._servicer = servicer
        self._bodies = bodies
        self.slow = slow
        self.slow_of_key = max(1, slow // 2)
        self.limit_s = limit_s
        self.under_way: Counter[str] = Counter()  # slow messages by key
        self._trimming: asyncio.TimerHandle | None = None

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

    def full(self, principal: Principal) -> Overloaded | None:
        """Why no further slow message is waited for with this key; None if there is room for it."""
        slow, of_key = self.under_way.total(), self.under_way[principal.key_id]
        if slow < self.slow and of_key < self.slow_of_key:
            return None
        found, whose = (slow, "") if slow >= self.slow else (of_key, f" with the key '{principal.name}'")
        return Overloaded(
            f"{found} large or slow messages{whose} are being received already "
            "(AIMASS_LIMIT_BODIES_MB over AIMASS_SERVING_MAX_BODY_MB, half of them with one key)",
            retry_after_s=_RETRY_S,
        )

    async def _denied(self, method: str, error: AimassError, _requests: object, context: Context) -> None:
        turn_away(self._servicer, Call(context, method), error)

    async def _received(
        self, method: str, answer: Method, principal: Principal, _requests: object, context: Context
    ) -> Any:  # noqa: ANN401 - any message
        try:
            request, size = await self._receive(method, principal, context)
            if size > _LARGE and self._trimming is None:
                self._trimming = asyncio.get_running_loop().call_later(_QUIET_S, self._trim)
            with self._bodies.holding(size):
                return await answer(request, context)
        except AimassError as error:  # of what is done here: a method answers its own
            turn_away(self._servicer, Call(context, method), error)
            return None

    def _trim(self) -> None:
        """Give back what messages were in: the library receives them in small pieces, which stay in the heap."""
        loop = asyncio.get_running_loop()
        if self._bodies.held:  # more would be needed at once
            self._trimming = loop.call_later(_QUIET_S, self._trim)
            return
        self._trimming = None
        loop.run_in_executor(None, trim)

    async def _receive(self, method: str, principal: Principal, context: Context) -> tuple[Any, int]:
        """The message and its bytes.

        Overloaded if too many are slow to come, DeadlineExceeded if it does not come, Malformed if it is none.
        """
        waiting = _Waiting(self, principal)
        try:
            message = await context.read()
            if message is grpc.aio.EOF:
                await asyncio.sleep(0)  # so ends a call that its client has cancelled, too, which is told right after
        except asyncio.CancelledError:
            if waiting.error is None:  # it is the client who has cancelled
                cancelled(self._servicer, Call(context, method))
                raise
            waiting.task.uncancel()
            raise waiting.error from None
        finally:
            waiting.end()
        if message is grpc.aio.EOF:
            raise Malformed("the call has ended without a message")
        found: tuple[Any, int] = message
        return found


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


class _Waiting:
    """One read that is under way; it is cancelled with an `error` if it takes too long."""

    __slots__ = ("_admission", "_principal", "_slow", "_timer", "error", "task")

    def __init__(self, admission: Admission, principal: Principal) -> None:
        self._admission = admission
        self._principal = principal
        self._slow = False
        self.error: AimassError | None = None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine runs in one
        self.task: asyncio.Task[Any] = task
        self._timer = task.get_loop().call_later(_AT_ONCE_S, self._becomes_slow)

    def _becomes_slow(self, *, again: bool = False) -> None:
        admission, loop = self._admission, self.task.get_loop()
        if error := admission.full(self._principal):
            if again:
                self._give_up(error)
            else:  # after the loop has stood still: what has come meanwhile is taken first
                self._timer = loop.call_later(_ONCE_MORE_S, partial(self._becomes_slow, again=True))
            return
        self._slow = True
        admission.under_way[self._principal.key_id] += 1
        text = f"the message was not whole within {admission.limit_s:g} s (AIMASS_GATEWAY_REQUEST_TIMEOUT_S)"
        self._timer = loop.call_later(admission.limit_s, self._give_up, DeadlineExceeded(text))

    def _give_up(self, error: AimassError) -> None:
        self.error = error
        self.task.cancel()

    def end(self) -> None:
        """The read has ended."""
        self._timer.cancel()
        if not self._slow:
            return
        under_way, key_id = self._admission.under_way, self._principal.key_id
        under_way[key_id] -= 1
        if not under_way[key_id]:
            del under_way[key_id]
