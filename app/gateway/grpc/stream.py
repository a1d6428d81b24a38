"""One call of ModelStreamInfer: its requests are begun as they come, and answered in their order."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import grpc

from app.core.errors import AimassError, DeadlineExceeded, Overloaded
from app.gateway.grpc.calls import Context, unexpected
from app.gateway.grpc.stubs import service_pb2 as pb
from app.gateway.grpc.window import Place, Window
from app.gateway.predict.bodies import Bodies

# Requests of one stream that may be under way: the reader waits for the oldest before it takes another.
STREAM_WINDOW = 64
STREAM_BYTES = 64 << 20  # … and their bytes, but for one that is larger
_LARGE = 1 << 20  # bytes of an answer that its client has the limit for; as many times as long for more
Answer = Callable[[pb.ModelInferRequest], Awaitable[pb.ModelStreamInferResponse]]
Refuse = Callable[[pb.ModelInferRequest, AimassError], pb.ModelStreamInferResponse]


class InferStream:
    """Has each request answered by `answer`, several at once, or refused by `refuse`; neither raises.

    Its client has `limit_s` seconds to take an answer (None: any time), and as long for each MiB of a larger one. A
    message, an answer or a task is a variable of no function that waits for the next one: it would be alive for as long
    as a stream has nothing to do.
    """

    def __init__(self, context: Context, bodies: Bodies, limit_s: float | None, answer: Answer, refuse: Refuse) -> None:
        self._context = context
        self._limit_s = limit_s
        self._answer = answer
        self._refuse = refuse
        self._window: Window[pb.ModelStreamInferResponse] = Window(STREAM_WINDOW, STREAM_BYTES, bodies)

    async def run(self) -> AimassError | None:
        """Answer all requests; the error that the stream ends with, which is not raised: its trace would keep tasks."""
        reader = asyncio.create_task(self._read())
        try:
            while await self._answer_first():
                pass
            return await reader
        except AimassError as error:
            return error
        finally:
            reader.cancel()
            self._window.cancel()

    async def _read(self) -> AimassError | None:
        """Begin requests until no more come, or one that cannot be read: then its error."""
        try:
            while await self._read_one():
                pass
        except AimassError as error:
            return error
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            return unexpected(error)
        finally:
            self._window.end()  # else what answers would wait for ever
        return None

    async def _read_one(self) -> bool:
        """Begin the next request once there is room for it; False if there is none."""
        request = await self._context.read()
        if request is grpc.aio.EOF:
            return False
        try:
            place = self._window.enter(request.ByteSize())
            begin = partial(self._begin, request, place)
        except Overloaded as error:
            place = self._window.enter(0)
            begin = partial(_known, self._refuse(request, error))
        del request
        await self._window.add(place, begin)
        return True

    def _begin(self, request: pb.ModelInferRequest, place: Place) -> asyncio.Future[pb.ModelStreamInferResponse]:
        return asyncio.create_task(self._one(request, place))

    async def _one(self, request: pb.ModelInferRequest, place: Place) -> pb.ModelStreamInferResponse:
        answer = await self._answer(request)
        self._window.answered(place, answer.ByteSize())
        return answer

    async def _answer_first(self) -> bool:
        """Send the oldest answer; False after the last. DeadlineExceeded if the client does not take it."""
        first = await self._window.first()
        if first is None:
            return False
        answering, place = first
        answer = await answering
        limit_s = None if self._limit_s is None else self._limit_s * max(1.0, place.size / _LARGE)
        try:
            async with asyncio.timeout(limit_s):
                await self._context.write(answer)
        except TimeoutError:
            text = f"an answer was not taken within {limit_s:g} s (AIMASS_GATEWAY_REQUEST_TIMEOUT_S)"
            raise DeadlineExceeded(text) from None
        self._window.left(place)
        return True


def _known(answer: pb.ModelStreamInferResponse) -> asyncio.Future[pb.ModelStreamInferResponse]:
    """A future that is done."""
    future = asyncio.get_running_loop().create_future()
    future.set_result(answer)
    return future
