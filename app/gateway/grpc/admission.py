"""Before a call's message is received: its key. And of messages together: how many bytes a process holds.

gRPC's library hands a method its message whole, however large, so what may come has to be settled around it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc

from app.core.errors import AimassError, DeadlineExceeded, Malformed, Overloaded
from app.gateway.grpc.calls import Call, Context, Guarded, authenticate, refuse, status_of, unexpected
from app.gateway.predict.bodies import Bodies
from app.serving.process_memory import trim

OPEN = frozenset({"ServerLive", "ServerReady"})  # to callers without a key
_AT_ONCE_S = 0.1  # a message that takes longer is large, or its client is slow
_RETRY_S = 1.0
_LARGE = 1 << 20  # bytes of a message after which memory is given back, once nothing is held
_QUIET_S = 1.0
Handler = Any  # grpc.RpcMethodHandler, of which the stubs know no attributes


class Admission(grpc.aio.ServerInterceptor):
    """Turns away who has no key, unheard, and counts messages of unary calls until they are answered.

    `slow` messages may be under way for more than a moment, `limit_s` each: what has come of them is not known, so
    each may be as large as any.
    """

    def __init__(self, servicer: Guarded, bodies: Bodies, slow: int, limit_s: float) -> None:
        self._servicer = servicer
        self._bodies = bodies
        self.slow = slow
        self.limit_s = limit_s
        self.under_way = 0
        self._trimming: asyncio.TimerHandle | None = None

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """What answers the call; nothing of it is received before a method reads."""
        handler, method = await continuation(details), str(details.method).rpartition("/")[2]
        if handler is None or method in OPEN:
            return handler
        try:
            await authenticate(self._servicer.auth, dict(details.invocation_metadata or ()))
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            told = error if isinstance(error, AimassError) else unexpected(error)
            return grpc.stream_stream_rpc_method_handler(partial(self._denied, method, told))
        if handler.request_streaming:
            return handler

        def sized(data: bytes) -> tuple[Any, int]:
            return handler.request_deserializer(data), len(data)

        # As a stream of one: a method of a unary call is not asked before its message is there.
        return grpc.stream_unary_rpc_method_handler(
            partial(self._received, method, handler.unary_unary), sized, handler.response_serializer
        )

    async def _denied(self, method: str, error: AimassError, _requests: object, context: Context) -> None:
        self._servicer.ended(Call(context, method), status_of(error), error)
        refuse(context, error)

    async def _received(
        self, method: str, answer: Callable[[Any, Context], Awaitable[Any]], _requests: object, context: Context
    ) -> Any:  # noqa: ANN401 - any message
        try:
            request, size = await self._receive(context)
            if size > _LARGE and self._trimming is None:
                self._trimming = asyncio.get_running_loop().call_later(_QUIET_S, self._trim)
            with self._bodies.holding(size):
                return await answer(request, context)
        except AimassError as error:  # of what is done here: a method answers its own
            await self._denied(method, error, None, context)
            return None

    def _trim(self) -> None:
        """Give back what messages were in: the library receives them in small pieces, which stay in the heap."""
        loop = asyncio.get_running_loop()
        if self._bodies.held:  # more would be needed at once
            self._trimming = loop.call_later(_QUIET_S, self._trim)
            return
        self._trimming = None
        loop.run_in_executor(None, trim)

    async def _receive(self, context: Context) -> tuple[Any, int]:
        """The message and its bytes; Overloaded if too many are slow to come, DeadlineExceeded if it does not come."""
        waiting = _Waiting(self)
        try:
            message = await context.read()
        except asyncio.CancelledError:
            if waiting.error is None:  # it is the client who has cancelled
                raise
            waiting.task.uncancel()
            raise waiting.error from None
        finally:
            waiting.end()
        if message is grpc.aio.EOF:
            raise Malformed("the call has ended without a message")
        found: tuple[Any, int] = message
        return found


class _Waiting:
    """One read that is under way; it is cancelled with an `error` if it takes too long."""

    __slots__ = ("_admission", "_slow", "_timer", "error", "task")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._slow = False
        self.error: AimassError | None = None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine runs in one
        self.task: asyncio.Task[Any] = task
        self._timer = task.get_loop().call_later(_AT_ONCE_S, self._becomes_slow)

    def _becomes_slow(self) -> None:
        admission = self._admission
        if admission.under_way >= admission.slow:
            self._give_up(
                Overloaded(
                    f"{admission.under_way} large or slow messages are being received already "
                    "(AIMASS_LIMIT_BODIES_MB over AIMASS_SERVING_MAX_BODY_MB)",
                    retry_after_s=_RETRY_S,
                )
            )
            return
        self._slow = True
        admission.under_way += 1
        text = f"the message was not whole within {admission.limit_s:g} s (AIMASS_GATEWAY_REQUEST_TIMEOUT_S)"
        self._timer = self.task.get_loop().call_later(admission.limit_s, self._give_up, DeadlineExceeded(text))

    def _give_up(self, error: AimassError) -> None:
        self.error = error
        self.task.cancel()

    def end(self) -> None:
        """The read has ended."""
        self._timer.cancel()
        self._admission.under_way -= self._slow
