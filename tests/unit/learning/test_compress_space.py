"""Which recipes are tried of graphs that have convolutions and products."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from workers.compression.graphs import Model
from workers.compression.low_rank import low_rank, share_of_products
from workers.compression.material import Material
from workers.compression.recipes import Step
from workers.compression.space import Space
from workers.compression.weights import weight_only
from workers.export.runtime import open_session, predict

PICTURES = np.random.default_rng(4).uniform(size=(6, 3, 16, 16)).astype(np.float32)


def convolutions(hidden: int | None, channels: int = 16, classes: int = 10) -> Model:
    """Pictures of 16 x 16 → Conv → pooled to 8 x 8 → Gemm to so many, if any → Gemm; of low rank."""
    rng = np.random.default_rng(1)
    widths = [channels * 8 * 8, *([hidden] if hidden else []), classes]
    weights = {"f": rng.normal(size=(channels, 3, 3, 3)), "g": rng.normal(size=(channels, channels, 3, 3))}
    nodes = [
        helper.make_node("Conv", ["x", "f"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["c1", "g"], ["c2"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c2"], ["r"]),
        helper.make_node("Flatten", ["r"], ["h0"]),
    ]  # fmt: skip
    for at, (rows, columns) in enumerate(pairwise(widths)):
        weights[f"w{at}"] = rng.normal(size=(columns, 4)) @ rng.normal(size=(4, rows)) / rows
        weights[f"b{at}"] = rng.normal(size=columns)
        nodes.append(helper.make_node("Gemm", [f"h{at}", f"w{at}", f"b{at}"], [f"h{at + 1}"], transB=1))
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16]),
        helper.make_tensor_value_info(f"h{len(widths) - 1}", TensorProto.FLOAT, ["n", classes]),
    ]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def tried(model: Model, folder: Path) -> list[list[Step]]:
    nothing: Any = None
    space = Space.of(Material(b"", nothing, nothing, 0, folder), model)
    return [space.recipe(picked) or [] for picked in space.first]


def kinds(recipes: list[list[Step]]) -> set[str]:
    return {f"{step['step']} {step.get('method', '')}".strip() for recipe in recipes for step in recipe}


def test_large_products_beside_convolutions_have_recipes_of_their_own(tmp_path: Path):
    model = convolutions(hidden=512)
    assert share_of_products(model) > 0.9
    recipes = tried(model, tmp_path)
    smaller = {"quantize weights", "low_rank", "byte_weights", "half_weights"}
    assert kinds(recipes) == {"simplify", "quantize static", *smaller}
    assert [step["energy"] for [step, *_] in recipes if step["step"] == "low_rank"] == [0.98, 0.9, 0.75]
    assert [step["bits"] for [step, *_] in recipes if step.get("method") == "weights"] == [4, 8]


def test_those_recipes_make_the_graph_smaller_and_it_answers_as_before():
    model = convolutions(hidden=512)
    truth, size = predict(open_session(model.SerializeToString(), 1), {"x": PICTURES}), model.ByteSize()
    shorter, count = low_rank(model, 0.9999)
    assert count == 1
    made = (shorter, 20, 1e-3), (weight_only(model, 8), 3, 0.05), (weight_only(model, 4), 5, 0.3)
    for small, smaller, error in made:
        found = predict(open_session(small.SerializeToString(), 1), {"x": PICTURES})
        assert size / small.ByteSize() > smaller
        assert np.abs(found - truth).mean() / truth.std() < error


@pytest.mark.parametrize("channels", [16, 128])
def test_of_convolutions_with_a_small_classifier_nothing_else_is_tried(channels: int, tmp_path: Path):
    recipes = tried(convolutions(None, channels), tmp_path)
    assert kinds(recipes) == {"quantize static", "byte_weights", "half_weights", "simplify"}
    assert len(recipes) == 9


def test_products_that_are_a_small_part_of_the_bytes_are_not_worth_it(tmp_path: Path):
    model = convolutions(None)
    assert share_of_products(model) == 0  # the classifier has few columns
    assert share_of_products(convolutions(None, classes=64)) > 0.9
    wide = convolutions(32, channels=4)  # [256, 32] beside kernels of 36 and 36 · 4 numbers, then with larger ones
    assert share_of_products(wide) > 0.5
    kernels = next(tensor for tensor in wide.graph.initializer if tensor.name == "g")
    kernels.CopyFrom(numpy_helper.from_array(np.zeros((4, 4, 64, 64), np.float32), "g"))
    assert 0 < share_of_products(wide) < 0.25
    assert kinds(tried(wide, tmp_path)) == {"quantize static", "byte_weights", "half_weights", "simplify"}
