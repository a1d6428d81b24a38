"""Steps of recipes, each on graphs whose right answer is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.specs.jobs import TrainSpec
from app.specs.training import TrainingSpec
from workers.compression.candidate import Candidate
from workers.compression.front import front_of, nearest
from workers.compression.fuse import fuse, simplify
from workers.compression.graphs import PRODUCTS, Model, operators_of, with_names
from workers.compression.int8 import Static, quantize_weights
from workers.compression.low_rank import low_rank
from workers.compression.material import Material, Origin
from workers.compression.memory import peak_bytes
from workers.compression.mixed import evaluations, fewest_float, ranked_layers
from workers.compression.naming import described
from workers.compression.products import weighted
from workers.compression.recipes import Maker
from workers.compression.space import WEIGHTS_ALONE, Space, usual_precision
from workers.compression.sparsity import without_least
from workers.compression.trees import Forest
from workers.compression.weights import byte_weights, half_weights, weight_only
from workers.data.prepare import prepare
from workers.evaluation.judge import Judge
from workers.export.runtime import open_session, predict
from workers.jobs import train
from workers.learning import Rule, take

MakeJob = Callable[..., Any]


def two_layers(rank: int = 4) -> tuple[Model, dict[str, np.ndarray]]:
    """`x [N, 64]` → Gemm (transposed, of this rank) → Relu → MatMul of full rank; and rows for it."""
    rng = np.random.default_rng(0)
    first = (rng.normal(size=(96, rank)) @ rng.normal(size=(rank, 64))).astype(np.float32) / 8
    weights = {"w1": first, "b1": rng.normal(size=96).astype(np.float32), "w2": np.eye(96, 64, dtype=np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in "xy"]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, {"x": rng.normal(size=(50, 64)).astype(np.float32)}


def answers(model: Model, inputs: Any) -> np.ndarray:
    return predict(open_session(model.SerializeToString(), 1), inputs)


def test_what_has_a_low_rank_is_the_same_as_two_small_matrices():
    model, rows = two_layers(rank=4)
    smaller, count = low_rank(model, 0.99999)
    assert count == 1  # the other has full rank
    sizes = {tensor.name: list(tensor.dims) for tensor in smaller.graph.initializer}
    assert sizes["w1/left"] == [64, 4]
    assert "w1" not in sizes
    assert answers(smaller, rows) == pytest.approx(answers(model, rows), abs=1e-4)


def test_weights_of_fewer_bits_are_near_and_small():
    model, rows = two_layers(rank=60)
    truth, size = answers(model, rows), model.ByteSize()
    spread = truth.std()
    for make, smaller, error in (
        (half_weights, 1.8, 0.002), (byte_weights, 3.2, 0.02), (lambda m: weight_only(m, 8), 3.0, 0.05),
        (lambda m: weight_only(m, 4), 5.0, 0.2),
    ):  # fmt: skip
        made = make(model)
        assert size / made.ByteSize() > smaller
        assert 0 < np.abs(answers(made, rows) - truth).mean() / spread < error


def test_what_an_exporter_has_left_in_a_graph_is_worked_out():
    model, rows = two_layers()
    plain = answers(model, rows)
    half = numpy_helper.from_array(np.float32(0.5))
    left = [
        helper.make_node("Constant", [], ["half"], value=half),
        helper.make_node("Add", ["half", "half"], ["one"]),
        helper.make_node("Mul", ["x", "one"], ["same"]),
        helper.make_node("Identity", ["same"], ["again"]),
    ]
    nodes = [*left, *model.graph.node]
    nodes[len(left)].input[0] = "again"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    made = simplify(model)
    assert not {"Constant", "Identity"} & {node.op_type for node in made.graph.node}
    assert len(made.graph.node) < len(nodes) - 2
    assert answers(made, rows) == pytest.approx(plain, abs=1e-5)
    assert made.SerializeToString() == simplify(model).SerializeToString()


@pytest.mark.parametrize(("calibration", "rows"), [("min-max", 512), ("entropy", 128), ("percentile", 128)])
def test_a_recipe_says_how_many_rows_it_was_calibrated_with(calibration: str, rows: int):
    told = described([{**WEIGHTS_ALONE, "calibration": calibration}], 0, 512, None)
    assert told["calibration"] == {"rows": rows, "method": calibration, "part": "train"}


def test_the_least_weights_are_left_out_and_nothing_else():
    model, _ = two_layers(rank=60)
    made = {tensor.name: numpy_helper.to_array(tensor) for tensor in without_least(model, 0.7).graph.initializer}
    first = numpy_helper.to_array(model.graph.initializer[0])
    kept = made["w1"] != 0
    assert (~kept).sum() == round(0.7 * first.size)
    assert (made["w1"][kept] == first[kept]).all()
    assert np.abs(first[~kept]).max() <= np.abs(first[kept]).min()
    assert (made["b1"] == numpy_helper.to_array(model.graph.initializer[1])).all()  # no matrix


def test_weights_stored_as_bytes_are_floats_again_once_the_model_is_loaded(tmp_path: Path):
    model, rows = two_layers(rank=60)
    made, loaded = byte_weights(model), tmp_path / "loaded.onnx"
    assert {"Cast", "Mul"} <= {node.op_type for node in made.graph.node}
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(loaded)
    ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(loaded).graph
    assert not {"Cast", "Mul"} & {node.op_type for node in graph.node}
    assert sum(tensor.data_type == TensorProto.INT8 for tensor in graph.initializer) == 0
    assert np.abs(answers(made, rows) - answers(model, rows)).max() > 0


def test_bytes_share_a_scale_where_numbers_are_alike():
    """Columns of a table, and channels of kernels, of very different sizes: each has a scale of its own."""
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(400, 8)) * 10.0 ** np.arange(-4, 4)).astype(np.float32)
    kernels = (rng.normal(size=(16, 8, 3, 3)) * 10.0 ** (np.arange(16) % 5)[:, None, None, None]).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "i"], ["a"]), helper.make_node("Conv", ["p", "kernels"], ["b"])]
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, [None]),
        helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 8, 8, 8]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("a", "b")]
    given = {"table": table, "kernels": kernels}
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in given.items()])
    stored = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in byte_weights(helper.make_model(graph)).graph.initializer
    }
    assert {name: value.shape for name, value in stored.items() if name.endswith("scale")} == {
        "table/scale": (1, 8), "kernels/scale": (16, 1, 1, 1),
    }  # fmt: skip
    for name, value in given.items():
        scale = stored[f"{name}/scale"]
        assert (np.abs(stored[f"{name}/bytes"] * scale - value) <= scale * 0.501).all()


def dense(width: int = 64) -> tuple[Model, dict[str, np.ndarray]]:
    """`x [N, 4, width]` → two products with a bias, Relu between them → times itself; and rows for it."""
    rng = np.random.default_rng(3)
    weights = {f"w{i}": (rng.normal(size=(width, width)) / 8).astype(np.float32) for i in (1, 2)}
    weights |= {f"b{i}": rng.normal(size=width).astype(np.float32) for i in (1, 2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"]), helper.make_node("Add", ["b1", "p1"], ["s1"]),
        helper.make_node("Relu", ["s1"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["p2"], name="second"), helper.make_node("Add", ["p2", "b2"], ["s2"]),
        helper.make_node("Transpose", ["s2"], ["t"], perm=[0, 2, 1]), helper.make_node("MatMul", ["s2", "t"], ["y"]),
    ]  # fmt: skip
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4, last])
        for name, last in (("x", width), ("y", 4))
    ]
    tensors = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model, {"x": rng.normal(size=(50, 4, width)).astype(np.float32)}


def test_products_with_weights_are_integers_and_what_is_between_stays_float(tmp_path: Path):
    model, rows = dense()
    made = Static(model, rows, 50, tmp_path).quantize(["MatMul"], float_between=True)
    kinds = [node.op_type for node in made.graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("MatMul"), kinds.count("Add")) == (2, 1, 0)
    truth = answers(model, rows)
    assert 0 < np.abs(answers(made, rows) - truth).max() / truth.std() < 0.1
    kept = Static(model, rows, 50, tmp_path / "b").quantize(["MatMul"], float_between=True, keep_float=["second"])
    assert [node.op_type for node in kept.graph.node].count("MatMul") == 2


def test_a_graph_whose_layers_all_stay_float_is_the_full_one(tmp_path: Path):
    """As mixed precision may ask for; products of two activations are none of its layers."""
    model, rows = dense()
    quantizer = Static(model, rows, 50, tmp_path)
    layers = quantizer.layers(["MatMul"], float_between=True)
    assert len(layers) == 2
    made = quantizer.quantize(["MatMul"], float_between=True, keep_float=layers)
    assert np.array_equal(answers(made, rows), answers(model, rows))
    ranked = ranked_layers(
        model.SerializeToString(),
        lambda kept: quantizer.quantize(["MatMul"], float_between=True, keep_float=kept),
        layers, lambda raw: predict(open_session(raw, 1), rows),
    )  # fmt: skip
    assert sorted(ranked) == sorted(layers)


@pytest.mark.parametrize("shape", [(1,), (4, 64), (64,)], ids=str)
def test_only_a_bias_of_the_columns_goes_into_the_product(tmp_path: Path, shape: tuple[int, ...]):
    model, rows = dense()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(
        numpy_helper.from_array(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape), "b1")
    )
    made = Static(model, rows, 50, tmp_path).quantize(["MatMul"], float_between=True)
    truth = answers(model, rows)
    assert np.abs(answers(made, rows) - truth).max() / truth.std() < 0.1
    assert ("Add" in operators_of(made)) == (shape != (64,))


def test_a_product_that_others_read_too_is_made_once(tmp_path: Path):
    model, rows = dense()
    model.graph.node.append(helper.make_node("Neg", ["p1"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None, 4, 64]))
    made = Static(model, rows, 50, tmp_path).quantize(["MatMul"], float_between=True)
    kinds = [node.op_type for node in made.graph.node]
    assert (kinds.count("MatMulIntegerToFloat"), kinds.count("MatMul"), kinds.count("Add")) == (1, 2, 1)


def test_weights_are_known_in_every_form_and_only_matrices_are_quantized():
    model, _ = dense()
    assert usual_precision(model) == WEIGHTS_ALONE
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, turned in (("w1", False), ("w2", True)):
        node = helper.make_node("Transpose", [f"{name}/t"], [name], perm=[1, 0])
        if not turned:
            node = helper.make_node("Constant", [], [name], value=weights[name])
            model.graph.initializer.remove(weights[name])
        weights[name].name = f"{name}/t"
        model.graph.node.insert(0, node)
    with_names(model)
    assert len(weighted(model, PRODUCTS)) == 2
    stacked, _ = dense()
    for tensor in stacked.graph.initializer:
        if tensor.name.startswith("w"):
            tensor.CopyFrom(numpy_helper.from_array(np.ones((4, 64, 64), np.float32), tensor.name))
    assert usual_precision(stacked) is None


def test_what_comes_out_of_a_node_of_unknown_type_is_quantized_too(tmp_path: Path):
    model, rows = dense()
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "FastGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made = Static(model, rows, 50, tmp_path).quantize(["MatMul"], float_between=True)
    assert [node.op_type for node in made.graph.node].count("MatMulIntegerToFloat") == 2
    prepared = onnx.load(tmp_path / "prepared.onnx")  # told in one order, for a recipe makes the same file again
    assert [value.name for value in prepared.graph.value_info][-2:] == ["r", "p2"]


def test_the_answer_to_a_row_does_not_depend_on_its_neighbours_but_where_ranges_are_found_at_run_time(tmp_path: Path):
    model, rows = dense()
    one, crowd = {"x": rows["x"][:1]}, {"x": np.concatenate([rows["x"][:1], rows["x"][1:] * 50])}
    static = Static(model, rows, 50, tmp_path).quantize(["MatMul"], float_between=True)
    assert np.array_equal(answers(static, one)[0], answers(static, crowd)[0])
    dynamic = quantize_weights(model, ["MatMul"])
    assert np.abs(answers(dynamic, one)[0] - answers(dynamic, crowd)[0]).max() > 0.01


def test_without_convolutions_no_recipe_quantizes_what_is_between_products(tmp_path: Path):
    """An encoder's masks and sums of attention are not for 8 bits."""
    nothing: Any = None
    graph, _ = dense()
    space = Space.of(Material(b"", nothing, nothing, 0, tmp_path), graph)
    steps = [step for picked in space.first for step in space.recipe(picked) or []]
    static = [step for step in steps if step.get("method") == "static"]
    assert {step["calibration"] for step in static} == {"min-max", "entropy", "percentile"}
    assert {step["activations"] for step in static} == {"uint8", "int8"}
    assert all(step["float_between"] for step in static)


def test_a_graph_whose_products_have_no_weights_is_not_quantized(tmp_path: Path):
    model, rows = dense()
    with pytest.raises(ValueError, match="no node of these types has weights"):
        Static(model, rows, 50, tmp_path).quantize(["Gemm"], float_between=True)


@pytest.mark.parametrize("ends", [(["half", "a"], ["h", "m"]), (["h", "a"], ["m", "half"])], ids=["new", "old"])
def test_gelu_as_torch_writes_it_becomes_one_node(ends: tuple[list[str], list[str]]):
    model, rows = two_layers(rank=60)
    for name, value in (("root", 2**0.5), ("one", 1.0), ("half", 0.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    nodes = list(model.graph.node)
    written = [
        helper.make_node("Div", ["h", "root"], ["d"]), helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["a"]), helper.make_node("Mul", ends[0], ["m"]),
        helper.make_node("Mul", ends[1], ["r"]),
    ]  # fmt: skip
    del model.graph.node[:]
    model.graph.node.extend([nodes[0], *written, nodes[2]])
    fused = fuse(model, fast_gelu=False)
    assert "Gelu" in operators_of(fused)
    assert "Erf" not in operators_of(fused)
    onnx.checker.check_model(fused)  # as every recipe's graph is
    assert answers(fused, rows) == pytest.approx(answers(model, rows), abs=1e-5)


def test_fast_gelu_is_near_the_exact_one():
    model, rows = two_layers(rank=60)
    model.graph.node[1].CopyFrom(helper.make_node("Gelu", ["h"], ["r"]))
    model.opset_import[0].version = 20
    fused = fuse(model, fast_gelu=True)
    assert "FastGelu" in operators_of(fused)
    assert 0 < np.abs(answers(fused, rows) - answers(model, rows)).max() < 2e-3


def test_the_fewest_layers_are_found_in_the_promised_number_of_looks():
    layers = [f"layer {i}" for i in range(37)]
    for needed in (1, 18, 37):
        looks: list[int] = []

        def good(kept: Any, needed: int = needed, looks: list[int] = looks) -> bool:
            looks.append(len(kept))
            return len(kept) >= needed

        assert fewest_float(layers, good) == layers[:needed]
        assert len(looks) <= evaluations(len(layers)) - len(layers)
    assert fewest_float(layers, lambda _: False) is None


def candidate(name: str, smaller: float, speed_up: float, drop: float = 0.0, **more: Any) -> Candidate:
    loss = {"metric": "accuracy", "measured": drop, "at_most": drop, "allowed": 0.01}
    size = round(1000 / smaller)
    numbers = {"smaller": smaller, "speed_up": speed_up, "quicker": speed_up}
    return Candidate([{"step": name}], size, loss=loss, **numbers, **more)


def test_the_front_has_what_nothing_beats_and_the_winner_first():
    fast, small = candidate("fast", 2, 8), candidate("small", 9, 3)
    nearly = candidate("nearly as fast and smaller", 3, 7.9, 0.0005)
    both = [candidate("beaten", 1.9, 5), small, fast, nearly, candidate("out", 20, 20, stops=["it loses"], excess=1.0)]
    assert front_of(both, "speed") == [nearly, small]
    assert front_of(both, "bytes")[0] == small
    out = [candidate("far", 2, 2, stops=["x"], excess=3.0), candidate("near", 2, 2, stops=["y"], excess=0.1)]
    assert front_of(out, "speed") == []
    assert nearest([*out, Candidate([], failed="no")]) == out[1]


class TestTrees:
    """Of three classes, taught and cut."""

    @pytest.fixture
    def material(self, make_job: MakeJob, wine: pl.DataFrame, tmp_path: Path) -> Material:
        job = make_job(wine, family="gbdt", params={"n_estimators": 40, "min_child_samples": 5})
        train.run(job)
        prepared = prepare(job, TrainSpec.model_validate(job.spec).check_family())
        judge = Judge("classification", *prepared.part("test"), Rule(), 1)
        return Material((job.output / "model.onnx").read_bytes(), prepared, judge, 3, tmp_path)

    def test_a_student_answers_as_its_teacher_and_is_the_same_each_time(self, material: Material):
        step = {"step": "student", "of": "trees", "size": "small"}
        raw = Maker(material).make([step])
        rows, _ = material.prepared.part("test")
        teacher, student = (predict(open_session(m, 1), rows) for m in (material.model, raw))
        assert student.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (teacher.argmax(axis=1) == student.argmax(axis=1)).mean() > 0.9
        assert Maker(material).make([step]) == raw

    def test_what_begins_with_a_step_that_failed_is_not_tried(self, material: Material):
        maker, whole = Maker(material), {"step": "first_trees", "share": 1.0}
        assert not maker.hopeless([whole, {"step": "merge_leaves", "tolerance": 0.1}])
        with pytest.raises(ValueError, match="no tree of"):
            maker.make([whole])
        assert maker.hopeless([whole, {"step": "merge_leaves", "tolerance": 0.1}])
        assert not maker.hopeless([{"step": "merge_leaves", "tolerance": 0.1}, whole])

    def test_merged_leaves_change_answers_by_no_more_than_they_differ(self, material: Material):
        graph = material.graph()
        forest = Forest.of(graph)
        rows = take(material.prepared.inputs, slice(0, 100))

        def scores(model: Model) -> np.ndarray:
            node = next(n for n in model.graph.node if n.op_type == "TreeEnsembleRegressor")
            shown = onnx.ModelProto()
            shown.CopyFrom(model)
            shown.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
            return predict(open_session(shown.SerializeToString(), 1), rows, output=node.output[0])

        full = scores(graph)
        for tolerance in (0.5, 2.0):
            merged = Forest.of(forest.merged(tolerance))
            assert 0 < len(merged.attributes["nodes_nodeids"]) < len(forest.attributes["nodes_nodeids"])
            bound = tolerance * np.std(forest.attributes["target_weights"]) * forest.trees
            assert np.abs(scores(merged.model) - full).max() <= bound
        assert scores(forest.merged(0.0)) == pytest.approx(full, abs=1e-5)


def test_a_network_is_quantized_as_its_recipe_says_and_taught(make_job: MakeJob, digits: pl.DataFrame, tmp_path: Path):
    training = {"epochs": 2, "batch_size": 64, "optimizer": {"lr": 0.005}}
    job = make_job(
        digits[:900], data="image", target="label", family="cnn", params={"channels": [16, 32]}, training=training
    )
    train.run(job)
    spec = TrainSpec.model_validate(job.spec).check_family()
    prepared = prepare(job, spec)
    judge = Judge("classification", *prepared.part("validation"), Rule(), 1)
    origin = Origin("cnn", spec.params, TrainingSpec.model_validate(training))
    maker = Maker(Material((job.output / "model.onnx").read_bytes(), prepared, judge, 0, tmp_path, origin, job))
    step = {
        "step": "quantize", "method": "static", "operators": ["Conv", "Relu"], "activations": "int8",
        "calibration": "entropy",
    }  # fmt: skip
    raw = maker.make([step])
    layers = maker.static([]).layers(["Conv", "Relu"], float_between=False)
    floats = operators_of(maker.graph([{**step, "keep_float": layers}]))
    assert "QuantizeLinear" in operators_of(onnx.load_from_string(raw))
    assert "QuantizeLinear" not in floats
    student = [{"step": "student", "of": "networks", "size": "half"}]
    taught, full = judge.metrics(maker.make(student))["accuracy"], judge.metrics(maker.material.model)["accuracy"]
    assert len(maker.make(student)) < len(maker.material.model) / 2
    assert taught > full - 0.15
    again = Maker(Material(maker.material.model, prepared, judge, 0, tmp_path / "again", origin, job))
    assert again.make([step]) == raw
    path = tmp_path / "int8.onnx"
    path.write_bytes(raw)
    peak = peak_bytes(path, take(judge.inputs, slice(0, 64)), 1, tmp_path)
    assert peak is not None
    assert peak > len(raw)
