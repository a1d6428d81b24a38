"""What a gRPC server receives from whom: keys come before messages, and messages are counted together."""

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.support.oip import Addresses, inputs, sample, serve, sum_source
from tests.support.servers import wait_until

pytestmark = pytest.mark.enable_socket
KEY = (("x-api-key", "good"),)
SERVICE = "/inference.GRPCInferenceService/"
SLOW = 16  # messages of 64 MiB in the 1 GiB of the server


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
        begin = channel.stream_stream(
            SERVICE + method,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        self.call = begin(self._messages(), metadata=key, timeout=60)

    def _messages(self) -> Iterator[Any]:
        self._ended.wait(60)
        yield from ()

    def end(self) -> None:
        self._ended.set()

    def fails(self) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        return caught.value.code(), caught.value.details()


def infer(channel: grpc.Channel, rows: int = 1, seed: int = 0) -> Any:
    numbers, words, expected = sample(rows, seed)
    request = pb.ModelInferRequest(model_name="sum")
    for name, kind, tensor in (("numbers", "FP32", numbers), ("words", "BYTES", words)):
        request.inputs.add(name=name, datatype=kind, shape=tensor.shape)
    packed = triton.InferInput("words", list(words.shape), "BYTES")
    packed.set_data_from_numpy(words)
    request.raw_input_contents.extend([numbers.tobytes(), packed._get_content()])
    answer = triton.service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=KEY, timeout=60)
    np.testing.assert_allclose(np.frombuffer(answer.raw_output_contents[0], "<f4"), expected, rtol=1e-5, atol=1e-5)
    return answer


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "ServerMetadata", "RepositoryModelLoad"])
@pytest.mark.parametrize("key", [(), (("x-api-key", "bad"),)])
def test_who_has_no_key_is_told_before_a_message_has_come(channel: grpc.Channel, method: str, key: Any):
    silent = Silent(channel, method, key)
    assert silent.fails()[0] is grpc.StatusCode.UNAUTHENTICATED
    silent.end()


def test_a_call_without_a_message_is_refused(channel: grpc.Channel):
    silent = Silent(channel)
    silent.end()
    assert silent.fails() == (grpc.StatusCode.INVALID_ARGUMENT, "the call has ended without a message")


def test_so_many_messages_may_be_slow_and_others_go_on(addresses: Addresses, channel: grpc.Channel):
    slow = [Silent(channel) for _ in range(SLOW)]
    time.sleep(1)  # until each has taken longer than a moment
    code, text = Silent(channel).fails()
    assert (code, text.split(" large")[0]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, str(SLOW))
    for seed in range(20):
        infer(channel, seed=seed)
    for one in slow:
        one.call.cancel()

    def room() -> bool:
        silent = Silent(channel)
        time.sleep(0.5)
        found: bool = silent.call.is_active()
        silent.call.cancel()
        return found

    wait_until(room, 10, "calls that were cancelled no longer count")
    assert addresses.bodies.held == 0


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
