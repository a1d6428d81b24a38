"""A model with numbers and words in and out, behind a live server that speaks every prediction protocol."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from tritonclient import grpc as triton

from app.core.errors import Unauthenticated
from app.core.principal import Principal
from app.core.signature import Column, Signature, Tensor
from app.gateway.grpc.server import GrpcServer
from app.gateway.grpc.service import InferenceService
from app.gateway.predict.bodies import Bodies
from app.gateway.predict.dispatcher import Dispatcher
from app.gateway.predict.ports import Receive, Scope, Send
from app.gateway.predict.protocol import JoiningProtocol
from app.serving.host import Batching, Host, ModelSource
from app.settings import GatewaySettings, ServingSettings
from tests.support.repository import HostRepository

# numbers [n, 3] and words [n, 1] in; value = sum of the numbers + 100 if the word is "red", and the words again, out.
SIGNATURE = Signature(
    "regression",
    (Tensor("numbers", "FP32", (-1, 3)), Tensor("words", "BYTES", (-1, 1))),
    (Tensor("value", "FP32", (-1,)), Tensor("echo", "BYTES", (-1, 1))),
    (
        *(Column(name, "number", "numbers", at) for at, name in enumerate("abc")),
        Column("word", "category", "words", 0),
    ),
)


def write_model(folder: Path) -> Path:
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["words"],
            ["codes"],
            domain="ai.onnx.ml",
            keys_strings=["red"],
            values_floats=[100.0],
            default_float=0.0,
        ),
        helper.make_node("Concat", ["numbers", "codes"], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "axes"], ["value"], keepdims=0),
        helper.make_node("Identity", ["words"], ["echo"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sum",
        [info("numbers", TensorProto.FLOAT, ["n", 3]), info("words", TensorProto.STRING, ["n", 1])],
        [info("value", TensorProto.FLOAT, ["n"]), info("echo", TensorProto.STRING, ["n", 1])],
        [axes],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    golden = {
        "inputs": {
            "numbers": {"datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]},
            "words": {"datatype": "BYTES", "shape": [1, 1], "data": ["red"]},
        },
        "outputs": {
            "value": {"datatype": "FP32", "shape": [1], "data": [106]},
            "echo": {"datatype": "BYTES", "shape": [1, 1], "data": ["red"]},
        },
    }
    (folder / "signature.json").write_text(json.dumps(SIGNATURE.to_json()))
    (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def inputs(numbers: np.ndarray, words: np.ndarray) -> list[Any]:
    """The tensors of a sample as NVIDIA's gRPC client takes them."""
    first = triton.InferInput("numbers", list(numbers.shape), "FP32")
    first.set_data_from_numpy(numbers)
    second = triton.InferInput("words", list(words.shape), "BYTES")
    second.set_data_from_numpy(words)
    return [first, second]


class Keys:
    def cached(self, key: bytes, /) -> Principal | None:
        return Principal("1", "good", frozenset({"predict", "read", "train"})) if key == b"good" else None

    async def verify(self, key: bytes, /) -> Principal:
        raise Unauthenticated(f"the API key of {len(key)} bytes is unknown")


async def nothing(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


@dataclass(frozen=True)
class Addresses:
    """Where the server listens, and what it has in memory, which belongs to the event loop of its thread."""

    http: str
    grpc: str
    host: Host
    bodies: Bodies  # that the server holds


@contextlib.contextmanager
def serve(*sources: ModelSource, request_timeout_s: float = 30.0) -> Iterator[Addresses]:
    """Serve models over HTTP and gRPC on the loopback, in a thread with an event loop of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    ports: list[int] = []
    hosts: list[Host] = []
    bodies = Bodies(1 << 30)
    started, stop = threading.Event(), threading.Event()

    async def run() -> None:
        settings = ServingSettings()
        host = Host(settings)
        hosts.append(host)
        for source in sources:
            await host.swap(await host.load(source))
        repository = HostRepository(host)
        app = Dispatcher(nothing, host, Keys(), repository, settings, bodies=bodies)
        server = uvicorn.Server(
            uvicorn.Config(app, http=JoiningProtocol, lifespan="off", access_log=False, log_level="warning")
        )
        service = InferenceService(host, Keys(), repository, bodies)
        gateway = GatewaySettings(grpc_port=0, drain_s=1.0, request_timeout_s=request_timeout_s)
        grpc = GrpcServer(service, gateway, settings.max_body_mb << 20)
        ports.append(await grpc.start())
        hosts.append(host)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        started.set()
        await asyncio.to_thread(stop.wait)
        server.should_exit = True
        await serving
        await grpc.stop()
        await host.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert started.wait(60)
    yield Addresses(f"127.0.0.1:{listener.getsockname()[1]}", f"127.0.0.1:{ports[0]}", hosts[0], bodies)
    stop.set()
    thread.join(30)


def sum_source(folder: Path) -> ModelSource:
    """The model, written into the folder."""
    return ModelSource("sum", "sum", 7, "fp32", write_model(folder), folder / "model.onnx", Batching(16, 4096))


def sample(rows: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random numbers and words, and the value that the model makes of each row."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(rows, 3)).astype(np.float32)
    words = rng.choice(np.array(["red", "blau", "a b", ""], object), (rows, 1))
    return numbers, words, numbers.sum(axis=1) + np.where(words[:, 0] == "red", np.float32(100), np.float32(0))
