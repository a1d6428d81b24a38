"""Small real ONNX models in version folders, and an ASGI client that needs no socket."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.core.signature import Column, ImageFormat, Signature, Tensor
from app.gateway.predict.dispatcher import Dispatcher
from app.serving.host import Batching, Host, ModelSource
from app.settings import ServingSettings
from tests.support.repository import HostRepository
from tests.support.serving import Keys, inner

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]


def save(graph: onnx.GraphProto, folder: Path, signature: Signature, golden: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "golden.json").write_text(json.dumps(golden))
    return folder


def value(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


TABLE = Signature(
    "classification",
    (Tensor("numeric", "FP32", (-1, 3)), Tensor("categorical", "BYTES", (-1, 1))),
    (Tensor("probabilities", "FP32", (-1, 2)),),
    (
        Column("age", "integer", "numeric", 0),
        Column("charge €", "number", "numeric", 1, nullable=True),
        Column("member", "boolean", "numeric", 2),
        Column("colour", "category", "categorical", 0, nullable=True),
    ),
    ("no", "yes"),
    "churn",
)


@pytest.fixture(scope="session")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """s = age + 2 * charge (0 if missing) + 4 * member + (red 10, blue 20, else 0); answers [1 - s/1000, s/1000]."""
    weights = numpy_helper.from_array(np.array([[1], [2], [4]], np.float32), "weights")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    scale = numpy_helper.from_array(np.full(1, 1000, np.float32), "scale")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["missing"]),
        helper.make_node("Where", ["missing", "zero", "numeric"], ["filled"]),
        helper.make_node("MatMul", ["filled", "weights"], ["linear"]),
        helper.make_node(
            "LabelEncoder",
            ["categorical"],
            ["colours"],
            domain="ai.onnx.ml",
            keys_strings=["red", "blue"],
            values_floats=[10.0, 20.0],
            default_float=0.0,
        ),
        helper.make_node("Add", ["linear", "colours"], ["score"]),
        helper.make_node("Div", ["score", "scale"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [value("numeric", TensorProto.FLOAT, ["n", 3]), value("categorical", TensorProto.STRING, ["n", 1])],
        [value("probabilities", TensorProto.FLOAT, ["n", 2])],
        [weights, zero, scale, one],
    )
    golden = {
        "inputs": {
            "numeric": {"datatype": "FP32", "shape": [2, 3], "data": [30, 5, 1, 40, None, 0]},
            "categorical": {"datatype": "BYTES", "shape": [2, 1], "data": ["red", ""]},
        },
        "outputs": {"probabilities": {"datatype": "FP32", "shape": [2, 2], "data": [0.946, 0.054, 0.96, 0.04]}},
    }
    return save(graph, tmp_path_factory.mktemp("table"), TABLE, golden)


PICTURE = Signature(
    "regression",
    (Tensor("image", "UINT8", (-1, 1, 2, 3)),),
    (Tensor("value", "FP32", (-1,)),),
    (Column("photo", "image", "image"),),
    target="brightness",
    image=ImageFormat("L", 2, 3),
)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """value = the mean pixel."""
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["value"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "picture",
        [value("image", TensorProto.UINT8, ["n", 1, 2, 3])],
        [value("value", TensorProto.FLOAT, ["n"])],
        [axes],
    )
    golden = {
        "inputs": {"image": {"datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [0, 1, 2, 3, 4, 5]}},
        "outputs": {"value": {"datatype": "FP32", "shape": [1], "data": [2.5]}},
    }
    return save(graph, tmp_path_factory.mktemp("picture"), PICTURE, golden)


@pytest.fixture
def source() -> Callable[..., ModelSource]:
    def make(folder: Path, endpoint: str = "churn", version: int = 3, **more: Any) -> ModelSource:
        limits = more.pop("batching", Batching(max_batch=8, max_queue=64))
        variant = more.pop("variant", "fp32")
        return ModelSource(endpoint, "telco", version, variant, folder, more.pop("onnx", folder / "model.onnx"), limits)

    return make


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class AsgiClient:
    """Calls an ASGI application as a server would."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        key: str | None = "good",
        parts: int = 1,
        leave: asyncio.Event | None = None,
    ) -> Reply:
        sent = {"content-length": str(len(body)), **(headers or {})} if parts == 1 else dict(headers or {})
        if key is not None:
            sent.setdefault("x-api-key", key)
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
        }
        size = -(-len(body) // parts) or 1
        chunks = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
            await (leave.wait() if leave else asyncio.Event().wait())
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        if not messages:
            return Reply(0, {}, b"")
        head = {k.decode(): v.decode() for k, v in messages[0]["headers"]}
        return Reply(messages[0]["status"], head, b"".join(m["body"] for m in messages[1:]))


@pytest.fixture
def asgi() -> Callable[[Any], AsgiClient]:
    return AsgiClient


@pytest.fixture
async def host(source: Callable[..., ModelSource], table_folder: Path, picture_folder: Path):
    host = Host(ServingSettings(threads=1))
    await host.swap(await host.load(source(table_folder, batching=Batching(8, 512))))
    await host.swap(await host.load(source(picture_folder, endpoint="bright", version=1)))
    yield host
    await host.close()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def call(host: Host, keys: Keys, asgi: Callable[[Any], Any]) -> Any:
    return asgi(Dispatcher(inner, host, keys, HostRepository(host), ServingSettings(max_body_mb=1)))
