"""Multiplications for a row, beside numbers that were worked out by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.unit.learning.test_text import reviews
from workers.compression.int8 import Static, quantize_weights
from workers.compression.weights import byte_weights, weight_only
from workers.evaluation.complexity import complexity
from workers.export.graph import ORT
from workers.jobs import train

MakeJob = Callable[..., Any]
TOKENS, WIDTH, HEADS, WIDER = 8, 32, 2, 64
# Queries, keys, values and what follows of them; two layers that are wider in between; tokens with tokens, twice.
ENCODER = TOKENS * (4 * WIDTH * WIDTH + 2 * WIDTH * WIDER) + 2 * TOKENS * TOKENS * WIDTH


def model_of(
    nodes: Sequence[NodeProto], inputs: dict[str, Sequence[Any]], weights: dict[str, Any], kind: int = TensorProto.FLOAT
) -> ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(ORT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def macs(model: ModelProto) -> int | None:
    return complexity(model.SerializeToString()).get("macs")


def encoder(tokens: Any = TOKENS) -> ModelProto:
    """`x [N, tokens, WIDTH]`: one layer, as exporters write it."""
    node, weights = helper.make_node, {f"w{name}": random(WIDTH, WIDTH) for name in "qkvo"}
    weights |= {"w1": random(WIDTH, WIDER), "w2": random(WIDER, WIDTH), "root": np.float32(4)}
    weights |= {"split": np.asarray([0, 0, HEADS, WIDTH // HEADS]), "join": np.asarray([0, 0, WIDTH])}
    nodes = []
    for name, turned in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}1"]), node("Reshape", [f"{name}1", "split"], [f"{name}2"]),
            node("Transpose", [f"{name}2"], [name], perm=turned),
        ]  # fmt: skip
    nodes += [
        node("MatMul", ["q", "k"], ["s1"]), node("Div", ["s1", "root"], ["s2"]), node("Softmax", ["s2"], ["s"]),
        node("MatMul", ["s", "v"], ["a1"]), node("Transpose", ["a1"], ["a2"], perm=[0, 2, 1, 3]),
        node("Reshape", ["a2", "join"], ["a"]), node("MatMul", ["a", "wo"], ["o"]),
        node("MatMul", ["o", "w1"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "w2"], ["y"]),
    ]  # fmt: skip
    return model_of(nodes, {"x": ["n", tokens, WIDTH]}, weights)


def test_a_convolutional_network():
    weights = {"f": random(8, 3, 3, 3), "d": random(8, 1, 3, 3), "c": random(10, 288), "b": random(10)}
    nodes = [
        helper.make_node("Conv", ["x", "f"], ["m"], pads=[1, 1, 1, 1], strides=[2, 2]),  # [N, 8, 6, 6]
        helper.make_node("Conv", ["m", "d"], ["e"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Flatten", ["e"], ["flat"]),
        helper.make_node("Gemm", ["flat", "c", "b"], ["y"], transB=1),
    ]
    assert macs(model_of(nodes, {"x": ["n", 3, 12, 12]}, weights)) == 36 * 8 * 27 + 36 * 8 * 9 + 2880


def test_an_encoder_multiplies_its_weights_for_each_token_and_tokens_with_tokens():
    assert macs(encoder()) == ENCODER == 69_632
    assert "macs_of" not in complexity(encoder().SerializeToString())


def test_what_depends_on_how_long_a_row_is_is_not_told_as_a_number():
    assert macs(encoder("tokens")) is None


def test_an_encoder_is_as_much_work_when_it_is_smaller(tmp_path: Path):
    rows = {"x": random(20, TOKENS, WIDTH)}
    integers = Static(encoder(), rows, 20, tmp_path).quantize(["MatMul"], float_between=True)
    for made in (weight_only(encoder(), 8), weight_only(encoder(), 4), quantize_weights(encoder(), ["MatMul"]),
                 byte_weights(encoder()), integers):  # fmt: skip
        assert macs(made) == ENCODER


def test_products_by_integers_with_their_bias_in_one_node():
    weights = {
        "w": np.ones((16, 5), np.int8), "one": np.float32(1), "zero": np.uint8(0), "none": np.int8(0), "b": random(5),
    }  # fmt: skip
    names = ["x", "w", "one", "one", "zero", "none", "b"]
    nodes = [
        helper.make_node("MatMulIntegerToFloat", names, ["p"], domain=ORT),
        helper.make_node("FastGelu", ["p"], ["g"], domain=ORT), helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]  # fmt: skip
    found = macs(model_of(nodes, {"x": ["n", 4, 16]}, weights | {"v": random(5, 3)}, TensorProto.UINT8))
    assert found == 4 * 16 * 5 + 4 * 5 * 3


def test_fused_attention():
    nodes = [
        helper.make_node("Attention", ["x", "w", "b"], ["a"], domain=ORT, num_heads=HEADS),
        helper.make_node("FusedMatMul", ["a", "x"], ["y"], domain=ORT, transB=1),
    ]
    weights = {"w": random(WIDTH, 3 * WIDTH), "b": random(3 * WIDTH)}
    found = macs(model_of(nodes, {"x": ["n", TOKENS, WIDTH]}, weights))
    assert found == TOKENS * WIDTH * 3 * WIDTH + 2 * TOKENS * TOKENS * WIDTH + TOKENS * WIDTH * TOKENS


def test_recurrent_layers_multiply_at_each_step():
    weights = {"w": random(2, 4 * 6, 5), "r": random(2, 4 * 6, 6), "time": np.asarray([1, 0, 2])}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r"], ["y"], hidden_size=6, direction="bidirectional"),
    ]
    assert macs(model_of(nodes, {"x": ["n", 7, 5]}, weights)) == 7 * 2 * 24 * (5 + 6)


@pytest.mark.parametrize("where", ["another operator", "a branch"])
def test_what_cannot_be_known_is_not_told(where: str):
    product = helper.make_node("MatMul", ["x", "w"], ["p"])
    if where == "another operator":
        more = helper.make_node("Einsum", ["p", "w"], ["y"], equation="ij,jk->ik")
    else:
        branch = helper.make_graph(
            [helper.make_node("MatMul", ["p", "w"], ["out"])], "branch", [],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        )  # fmt: skip
        more = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    weights = {"w": random(4, 4), "yes": np.asarray(True)}  # noqa: FBT003 - a condition
    assert macs(model_of([product, more], {"x": ["n", 4]}, weights)) is None
    assert macs(model_of([helper.make_node("Identity", ["p"], ["y"]), product][::-1], {"x": ["n", 4]}, weights)) == 16


def test_a_graph_that_multiplies_nothing_has_none():
    assert "macs" not in complexity(
        model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {}).SerializeToString()
    )


def test_of_texts_it_is_the_work_for_the_longest_row_that_is_read(make_job: MakeJob):
    params = {"width": 32, "depth": 2, "heads": 2, "max_tokens": 16}
    job = make_job(
        reviews(120), family="transformer", params=params, training={"epochs": 1}, features={"drop": ["stars"]}
    )
    train.run(job)
    found = complexity((job.output / "model.onnx").read_bytes())
    layer = 16 * (4 * 32 * 32 + 2 * 32 * 128) + 2 * 16 * 16 * 32
    assert found["macs"] == 2 * layer + 32 * 2
    assert found["macs_of"] == "a row of 16 tokens, the most that are read"
