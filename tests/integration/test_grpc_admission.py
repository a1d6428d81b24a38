"""What a gRPC server receives from whom: keys come before messages, and messages are counted together."""

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from app.core.principal import Principal
from app.gateway.grpc.admission import OPEN
from tests.support.oip import Addresses, Keys, inputs, sample, serve, sum_source
from tests.support.servers import wait_until

pytestmark = pytest.mark.enable_socket
KEY = (("x-api-key", "good"),)
SERVICE = "/inference.GRPCInferenceService/"
OTHER, READER = (("x-api-key", "other"),), (("x-api-key", "reader"),)
SLOW = 16  # messages of 64 MiB in the 1 GiB of the server, half of them with one key
PRINCIPALS = {
    b"good": Principal("1", "good", frozenset({"predict", "read", "train"})),
    b"other": Principal("2", "other", frozenset({"predict"})),
    b"reader": Principal("3", "reader", frozenset({"read"})),
}
NO_MESSAGES = [b"\xff\xff\xff", pb.ModelInferRequest(id="r-1").SerializeToString().replace(b"r-1", b"r-\xff")]


@pytest.fixture(scope="module", autouse=True)
def principals() -> Iterator[dict[bytes, Principal]]:
    """By key, as the servers know them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keys, "cached", lambda _, key: PRINCIPALS.get(key))
        yield PRINCIPALS


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    with serve(sum_source(tmp_path_factory.mktemp("sum"))) as found:
        yield found


@pytest.fixture
def channel(addresses: Addresses) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(addresses.grpc) as found:
        yield found


class Silent:
    """A call whose message does not come before `end`."""

    def __init__(self, channel: grpc.Channel, method: str = "ModelInfer", key: Any = KEY) -> None:
        self._ended = threading.Event()
        begin = channel.stream_stream(SERVICE + method)
        self.call = begin(self._messages(), metadata=key, timeout=60)

    def _messages(self) -> Iterator[Any]:
        self._ended.wait(60)
        yield from ()

    def end(self) -> None:
        self._ended.set()

    def fails(self) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        self.end()
        return caught.value.code(), caught.value.details()


def request_of(numbers: np.ndarray, words: np.ndarray) -> Any:
    request = pb.ModelInferRequest(model_name="sum")
    for name, kind, tensor in (("numbers", "FP32", numbers), ("words", "BYTES", words)):
        request.inputs.add(name=name, datatype=kind, shape=tensor.shape)
    packed = triton.InferInput("words", list(words.shape), "BYTES")
    packed.set_data_from_numpy(words)
    request.raw_input_contents.extend([numbers.tobytes(), packed._get_content()])
    return request


class Line:
    """A way to a server on which so many bytes a second go there, of all connections together."""

    def __init__(self, target: str, bytes_per_s: int) -> None:
        self._target = target.rpartition(":")
        self._rate = bytes_per_s
        self._turn = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection((self._target[0], int(self._target[2])))
                threading.Thread(target=self._pass, args=(here, there, self._rate), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here, 0), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, rate: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if rate:
                    with self._turn:
                        time.sleep(len(data) / rate)
                target.sendall(data)
        target.close()


def infer(channel: grpc.Channel, rows: int = 1, seed: int = 0, key: Any = KEY, letters: int = 0) -> Any:
    numbers, words, expected = sample(rows, seed)
    if letters:
        words, expected = np.array([["a" * letters]] * rows, object), numbers.sum(axis=1)  # a word that counts nothing
    request = request_of(numbers, words)
    answer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=key, timeout=60)
    np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], "<f4"), expected, rtol=1e-5, atol=1e-5)
    return answer


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "ServerMetadata", "RepositoryModelLoad"])
@pytest.mark.parametrize("key", [(), (("x-api-key", "bad"),)])
def test_who_has_no_key_is_told_before_a_message_has_come(channel: grpc.Channel, method: str, key: Any):
    silent = Silent(channel, method, key)
    assert silent.fails()[0] is grpc.StatusCode.UNAUTHENTICATED
    silent.end()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "RepositoryModelLoad"])
def test_who_lacks_the_scope_is_told_before_a_message_has_come(channel: grpc.Channel, method: str):
    silent = Silent(channel, method, READER)
    assert silent.fails()[0] is grpc.StatusCode.PERMISSION_DENIED
    silent.end()


@pytest.mark.parametrize("method", sorted(OPEN))
def test_what_needs_no_key_is_answered_without_a_message(channel: grpc.Channel, method: str):
    """So nobody without a key makes the server hold one; a client that sends one gets its answer all the same."""
    answer = pb.ServerLiveResponse(live=True).SerializeToString()  # both have one field, a flag
    silent = Silent(channel, method, ())
    assert list(silent.call) == [answer]
    silent.end()
    unary = channel.unary_unary(SERVICE + method)
    for message in (b"", b"\x12\x04text", b"\xff\xff"):  # empty, with a field that nobody knows, and none at all
        assert unary(message, timeout=60) == answer


@pytest.mark.parametrize("message", NO_MESSAGES)
def test_what_is_no_message_is_refused(
    addresses: Addresses, channel: grpc.Channel, caplog: pytest.LogCaptureFixture, message: bytes
):
    refused = addresses.host.metrics.refused
    before, good = refused["malformed"], request_of(*sample(1)[:2]).SerializeToString()
    with caplog.at_level(logging.WARNING), pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SERVICE + "ModelInfer")(message, metadata=KEY, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ModelInfer" in caught.value.details()
    # A stream whose client waits for its end, without a deadline, after the answers to what came before.
    call = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([good, good, message, good]), metadata=KEY)
    answers = [pb.ModelStreamInferResponse.FromString(next(call)) for _ in range(2)]
    assert [answer.error_message for answer in answers] == ["", ""]
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused["malformed"] - before == 2
    assert caplog.records == []


def test_a_key_that_is_revoked_is_refused_by_its_open_stream(channel: grpc.Channel, principals: dict[bytes, Principal]):
    good = request_of(*sample(1)[:2])
    answered = threading.Event()

    def messages() -> Iterator[Any]:
        yield good
        answered.wait(60)
        yield good

    begin = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    call = begin(messages(), metadata=OTHER, timeout=60)
    assert next(call).error_message == ""
    revoked = principals.pop(b"other")
    try:
        answered.set()
        assert "unknown" in next(call).error_message
        assert list(call) == []
    finally:
        principals[b"other"] = revoked


def test_a_stream_whose_client_takes_no_answers_ends_and_holds_nothing(tmp_path: Path):
    numbers, words = np.zeros((1, 3), np.float32), np.array([["a" * (3 << 20)]], object)
    large = request_of(numbers, words)  # its answer has the words again, and fits into what clients take
    ended = threading.Event()

    def messages() -> Iterator[Any]:
        for _ in range(4):
            yield large
        ended.wait(60)

    with serve(sum_source(tmp_path), request_timeout_s=0.5) as found, grpc.insecure_channel(found.grpc) as channel:
        begin = channel.stream_stream(
            SERVICE + "ModelStreamInfer", request_serializer=pb.ModelInferRequest.SerializeToString
        )
        call = begin(messages(), metadata=KEY, timeout=60)
        wait_until(lambda: found.bodies.held > 8 << 20, 30, "requests and answers count")
        wait_until(lambda: found.host.metrics.refused["deadline_exceeded"] == 1, 30, "the stream ends")
        assert found.bodies.held == 0
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "AIMASS_GATEWAY_REQUEST_TIMEOUT_S" in caught.value.details()
        ended.set()


def test_a_call_without_a_message_is_refused(channel: grpc.Channel):
    silent = Silent(channel)
    silent.end()
    assert silent.fails() == (grpc.StatusCode.INVALID_ARGUMENT, "the call has ended without a message")


def test_so_many_messages_are_received_at_once_and_others_wait(addresses: Addresses, channel: grpc.Channel):
    slow = [Silent(channel) for _ in range(SLOW // 2)]
    time.sleep(0.3)
    waiting = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(
        request_of(*sample(1)[:2]), metadata=KEY, timeout=60
    )
    with pytest.raises(grpc.FutureTimeoutError):
        waiting.result(timeout=0.5)
    for seed in range(5):  # the other half is for other keys
        infer(channel, seed=seed, key=OTHER)
    for one in slow:
        one.call.cancel()
    assert waiting.result(timeout=30).raw_output_contents
    assert addresses.bodies.held == 0


def test_many_callers_on_a_slow_line_are_all_answered(tmp_path: Path):
    """Each message takes a while, and there are more of them than may be received at once."""
    with serve(sum_source(tmp_path)) as found, Line(found.grpc, bytes_per_s=1 << 20) as line:
        with ThreadPoolExecutor(2 * SLOW) as pool, grpc.insecure_channel(line.address) as channel:
            answers = list(pool.map(lambda seed: infer(channel, 1, seed, letters=80_000), range(2 * SLOW)))
        assert len(answers) == 2 * SLOW
        assert found.host.metrics.refused == {}


def test_a_message_that_does_not_come_is_not_waited_for(tmp_path: Path):
    with serve(sum_source(tmp_path), request_timeout_s=0.2) as found, grpc.insecure_channel(found.grpc) as channel:
        code, text = Silent(channel).fails()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "AIMASS_GATEWAY_REQUEST_TIMEOUT_S" in text
        infer(channel)


def test_messages_count_among_the_bodies_that_are_held(addresses: Addresses, channel: grpc.Channel):
    bodies, rows = addresses.bodies, 4000  # of 12 bytes and a word
    infer(channel, rows)
    assert bodies.held == 0
    bodies.held = bodies.most  # of others
    try:
        infer(channel)  # small ones pass
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, rows)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "AIMASS_LIMIT_BODIES_MB" in caught.value.details()
        assert ("retry-after", "1") in caught.value.trailing_metadata()
        streamed: list[Any] = []
        numbers, words, _ = sample(rows, 0)
        with triton.InferenceServerClient(addresses.grpc) as client:
            client.start_stream(lambda result, error: streamed.append((result, error)), headers={"x-api-key": "good"})
            for tensors in ((numbers, words), (numbers[:1], words[:1])):
                client.async_stream_infer("sum", inputs(*tensors))
            client.stop_stream()
        (_, refused), (answered, error) = streamed
        assert isinstance(refused, InferenceServerException)
        assert "AIMASS_LIMIT_BODIES_MB" in str(refused)
        assert error is None
        assert answered.as_numpy("value").shape == (1,)
        assert bodies.held == bodies.most
    finally:
        bodies.held = 0


def test_who_waits_no_longer_is_counted_as_over_http(
    addresses: Addresses, channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
):
    served, waits = addresses.host.lookup("sum"), threading.Event()

    def never(*_given: Any) -> Any:
        waits.set()
        return asyncio.get_running_loop().create_future()

    monkeypatch.setattr(served._queue(), "infer", never)
    statuses, request = served.metrics.statuses, request_of(*sample(1)[:2])
    gone, late = statuses[499], statuses[504]
    begin = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
    call = begin.future(request, metadata=KEY)
    assert waits.wait(60)
    call.cancel()
    wait_until(lambda: statuses[499] == gone + 1, 30, "a client that has gone is counted")
    with pytest.raises(grpc.RpcError) as caught:
        begin(request, metadata=KEY, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: statuses[504] == late + 1, 30, "a deadline that has passed is counted")
    assert statuses[499] == gone + 1


def test_a_message_that_is_refused_is_let_go_at_once(channel: grpc.Channel):
    """Not at some later collection: a gateway's are rare, and a message may have 64 MiB."""
    begin = channel.unary_unary(SERVICE + "ModelInfer")
    raw = pb.ModelInferRequest(model_name="sum", raw_input_contents=[b"x" * 1000]).SerializeToString()

    def kept() -> int:
        return sum(type(one) is pb.ModelInferRequest for one in gc.get_objects())

    gc.collect()
    before = kept()
    gc.disable()
    try:
        for _ in range(10):
            with pytest.raises(grpc.RpcError) as caught:
                begin(raw, metadata=KEY, timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        wait_until(lambda: kept() <= before, 10, "no request is alive")
    finally:
        gc.enable()
