"""bfloat16 against the reference implementation that machine learning frameworks share."""

import ml_dtypes
import numpy as np
import onnxruntime as ort
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from app.core.signature import Tensor
from app.serving.bfloat16 import from_bits, runner, to_bits
from app.serving.tensors import from_raw, to_raw


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_rounding_is_that_of_ml_dtypes(values: list[float]):
    floats = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = floats.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(from_bits(to_bits(floats)), expected.astype(np.float32))


def test_every_value_survives_the_way_there_and_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = from_bits(bits)
    numbers = ~np.isnan(floats)
    np.testing.assert_array_equal(to_bits(floats)[numbers], bits[numbers])
    assert np.isnan(from_bits(to_bits(floats[~numbers]))).all()


def test_on_the_wire_it_has_two_bytes():
    values = np.array([[1.5, -2.0], [0.0, 3.0e38]], np.float32)
    raw = to_raw(values, "BF16")
    assert raw == values.astype(ml_dtypes.bfloat16).tobytes()
    back = from_raw(memoryview(raw), Tensor("x", "BF16", (-1, 2)), [2, 2], "m")
    np.testing.assert_array_equal(back, values.astype(ml_dtypes.bfloat16).astype(np.float32))


def test_a_graph_takes_and_gives_it_beside_other_types():
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "scale"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["y"], to=TensorProto.BFLOAT16),
        helper.make_node("Identity", ["scaled"], ["z"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.BFLOAT16, ["n", 3]), info("scale", TensorProto.FLOAT, ["n", 1])],
        [info("y", TensorProto.BFLOAT16, ["n", 3]), info("z", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    x, scale = from_bits(to_bits(rng.normal(size=(5, 3)))), rng.normal(size=(5, 1)).astype(np.float32)
    y, z = runner(session)(["y", "z"], {"x": x, "scale": scale})
    np.testing.assert_array_equal(z, x * scale)
    np.testing.assert_array_equal(y, (x * scale).astype(ml_dtypes.bfloat16).astype(np.float32))
    empty, _ = runner(session)(["y", "z"], {"x": x[:0], "scale": scale[:0]})
    assert empty.shape == (0, 3)
