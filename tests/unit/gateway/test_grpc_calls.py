"""Calls before their message has come, and calls that nobody waits for any more; in virtual time."""

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from app.core.errors import AimassError
from app.core.principal import Principal
from app.gateway.grpc import messages
from app.gateway.grpc.admission import Admission
from app.gateway.grpc.calls import SCOPES, Call, observed
from app.gateway.grpc.service import InferenceService
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.ports import Authenticator
from app.serving.oip import OipCodec
from app.telemetry.metrics import CLIENT_GONE
from tests.support.oip import SIGNATURE

SLOW = 4


class Keys:
    """Every key is good, for a scope that it names."""

    def cached(self, key: bytes, /) -> Principal | None:
        name = key.decode()
        return Principal(name, name, frozenset({"read" if name == "reader" else "predict"}))

    async def verify(self, key: bytes, /) -> Principal:
        raise AssertionError(f"{key!r} is known already")


class Servicer:
    def __init__(self) -> None:
        self.auth: Authenticator = Keys()
        self.told: list[tuple[str, str | None]] = []

    def ended(self, call: Call, status: grpc.StatusCode, error: AimassError | None = None) -> None:
        assert call.method == "ModelInfer"
        self.told.append((status.name, None if error is None else error.code))


class Context:
    """A call whose message comes when the test says so."""

    def __init__(self, left_s: float | None = None) -> None:
        self.message: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.left_s = left_s
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.read_begun = False

    async def read(self) -> Any:
        self.read_begun = True
        return await self.message

    def invocation_metadata(self) -> Any:
        return ()

    def time_remaining(self) -> float | None:
        return self.left_s

    def set_trailing_metadata(self, _metadata: Any) -> None:
        pass

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def admission(servicer: Servicer) -> Admission:
    return Admission(servicer, Bodies(1 << 20), SLOW, 30)


@pytest.fixture
async def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Any]:
    """Let time pass, as the loop sees it: at once, so that it has stood still."""
    loop, passed = asyncio.get_running_loop(), [0.0]
    clock = loop.time
    monkeypatch.setattr(loop, "time", lambda: clock() + passed[0])

    async def wait(seconds: float) -> None:
        passed[0] += seconds
        for _ in range(5):
            await asyncio.sleep(0)

    return wait


async def found(admission: Admission, key: str = "one", method: str = "ModelInfer") -> Any:
    async def answer(_request: Any, _context: Any) -> str:
        return "answer"

    async def handler(_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(answer, pb.ModelInferRequest.FromString)

    details: Any = SimpleNamespace(method=f"/service/{method}", invocation_metadata=(("x-api-key", key),))
    return await admission.intercept_service(handler, details)


async def begin(admission: Admission, context: Context, key: str = "one") -> asyncio.Task[Any]:
    handler = await found(admission, key)
    call = asyncio.create_task(handler.stream_unary(None, context))
    await asyncio.sleep(0)
    return call


async def test_one_key_receives_half_of_the_messages_and_others_wait_for_their_turn(admission: Admission):
    first = [Context() for _ in range(SLOW)]
    calls = [await begin(admission, context, "one" if at < SLOW // 2 else "other") for at, context in enumerate(first)]
    late = [Context() for _ in range(3)]
    waiting = [await begin(admission, context, key) for context, key in zip(late, ["one", "one", "third"], strict=True)]
    for context in late:
        context.message.set_result(("message", 1))
    await asyncio.sleep(0)
    assert admission.places.taken == Counter(one=2, other=2)
    assert [context.read_begun for context in late] == [False, False, False]
    first[2].message.set_result(("message", 1))  # of another key: there is room, and `one` has its half
    assert await waiting[2] == "answer"
    assert not waiting[0].done()
    first[0].message.set_result(("message", 1))
    assert [await call for call in waiting] == ["answer"] * 3
    for at in (1, 3):
        first[at].message.set_result(("message", 1))
    assert [await call for call in calls] == ["answer"] * SLOW
    assert admission.places.taken == Counter()


async def test_who_waits_in_vain_is_refused(admission: Admission, later: Any):
    admission.limit_s = 100
    slow = [await begin(admission, Context(), "one") for _ in range(SLOW // 2)]
    admission.limit_s = 30
    call = await begin(admission, context := Context(), "one")
    await later(31)
    assert await call is None
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 at once, 2 of them with the key 'one'" in context.details
    assert not context.read_begun
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    assert admission.places.taken == Counter()


async def test_who_leaves_the_line_leaves_no_place_behind(admission: Admission):
    contexts = [Context() for _ in range(SLOW // 2 + 4)]
    calls = [await begin(admission, context, "one") for context in contexts]
    calls[2].cancel()
    contexts[0].message.set_result(("message", 1))
    assert await calls[0] == "answer"
    await asyncio.sleep(0)
    assert [context.read_begun for context in contexts] == [True, True, False, True, False, False]
    # One who is cancelled in the very moment in which it is his turn gives it on.
    contexts[1].message.set_result(("message", 1))
    await calls[1]
    calls[4].cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    assert contexts[5].read_begun
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert admission.places.taken == Counter()


async def test_who_may_not_predict_is_not_heard(admission: Admission, servicer: Servicer):
    context = Context()
    handler = await found(admission, "reader")
    await handler.stream_stream(None, context)
    assert context.code is grpc.StatusCode.PERMISSION_DENIED
    assert servicer.told == [("PERMISSION_DENIED", "forbidden")]
    assert (await found(admission, "reader", "ModelMetadata")).stream_unary is not None


def test_every_method_says_what_it_needs():
    methods = {name for name in vars(InferenceService) if name[0].isupper()}
    assert methods == set(SCOPES)
    assert {name for name, scope in SCOPES.items() if scope == "predict"} == {"ModelInfer", "ModelStreamInfer"}


@pytest.mark.parametrize(
    ("left_s", "told"),
    [
        (None, ("CANCELLED", None)),
        (5, ("CANCELLED", None)),
        (0, ("DEADLINE_EXCEEDED", "deadline_exceeded")),
        (0.005, ("DEADLINE_EXCEEDED", "deadline_exceeded")),  # the client's deadline, which gRPC rounds up for us
    ],
)
async def test_who_waits_no_longer_is_told_apart(
    admission: Admission, servicer: Servicer, left_s: float | None, told: tuple[str, str | None]
):
    context: Any = Context(left_s)
    answering = asyncio.create_task(observed(servicer, Call(context, "ModelInfer"), asyncio.Event().wait()))
    receiving = await begin(admission, context)
    for call in (answering, receiving):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert servicer.told == [told, told]


async def test_who_goes_before_the_message_is_whole_has_not_sent_a_bad_one(admission: Admission, servicer: Servicer):
    call = await begin(admission, context := Context())
    context.message.set_result(grpc.aio.EOF)  # which is how gRPC's library ends a read of a cancelled call
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert servicer.told == [("CANCELLED", None)]


async def test_who_waits_no_longer_is_counted_as_over_http():
    host: Any = SimpleNamespace(metrics=SimpleNamespace(refused=Counter()))
    nothing: Any = None
    service = InferenceService(host, Keys(), nothing, Bodies(1))
    for left_s in (None, 0):
        context: Any = Context(left_s)
        for served in (None, SimpleNamespace(metrics=SimpleNamespace(statuses=Counter()))):
            call: Any = Call(context, "ModelInfer")
            call.served = served
            with pytest.raises(asyncio.CancelledError):
                await observed(service, call, asyncio.create_task(cancelled()))
            if served is not None:
                assert served.metrics.statuses == Counter([CLIENT_GONE if left_s is None else 504])
    assert host.metrics.refused == Counter(client_gone=1, deadline_exceeded=1)


async def cancelled() -> None:
    raise asyncio.CancelledError


def test_elements_are_counted_before_they_become_an_array(monkeypatch: pytest.MonkeyPatch):
    request = pb.ModelInferRequest(model_name="sum")
    request.inputs.add(name="numbers", datatype="FP32", shape=[1, 3]).contents.fp32_contents.extend([0.0] * 1000)
    words = request.inputs.add(name="words", datatype="BYTES", shape=[1, 1])
    words.contents.bytes_contents.append(b"red")
    monkeypatch.setattr(messages, "np", None)  # no array can be made
    with pytest.raises(AimassError, match=r"`fp32_contents` holds 1000 elements, its shape \[1, 3\] needs 3"):
        messages.read_infer(request, OipCodec("sum", SIGNATURE))
