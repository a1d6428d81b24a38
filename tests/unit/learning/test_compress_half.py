"""Half precision: what runs in FP16, what stays as it is, and that a GPU's measurements are kept as a GPU's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from app.core.errors import InvalidSpec
from app.serving.provider import Provider
from tests.unit.learning.test_compress_space import PICTURES, convolutions
from tests.unit.learning.test_compress_steps import answers, two_layers
from tests.unit.learning.test_picture_families import TINY as TINY_PICTURES
from tests.unit.learning.test_text import reviews
from tests.unit.learning.test_text_networks import TINY as TINY_TEXTS
from workers.compression.graphs import Model, operators_of
from workers.compression.half import in_half
from workers.compression.material import Material
from workers.compression.naming import described, name_of
from workers.compression.recipes import Maker
from workers.compression.space import Space, usual_precision
from workers.compression.weights import half_weights
from workers.evaluation.judge import Judge
from workers.jobs import compress, measure, train
from workers.learning import Rule

MakeJob = Callable[..., Any]
HALF = {"step": "half"}
NO_CUDA = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


def model_of(nodes: list[onnx.NodeProto], weights: dict[str, Any], inputs: dict[str, list[Any]], **more: Any) -> Model:
    """FP32 `inputs` by their shapes, to one output `y`."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 21), *(helper.make_opsetid(f.domain, 1) for f in more.get("functions", ()))]
    graph = helper.make_graph(nodes, "g", ends, out, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more)


def exactly(model: Model, rows: Any) -> np.ndarray:
    """As a device with kernels for FP16 answers: between two casts of FP16 a processor goes on in FP32."""
    return ReferenceEvaluator(model).run(None, rows)[0]


def types_within(model: Model) -> dict[str, int]:
    """Of what each operator reads first, by its type; of casts what they make."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    known |= {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    known |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {node.op_type: known[node.input[0]] for node in model.graph.node if node.op_type != "Cast"}


def ends(model: Model) -> list[tuple[str, int]]:
    return [(value.name, value.type.tensor_type.elem_type) for value in [*model.graph.input, *model.graph.output]]


@pytest.mark.parametrize(
    ("model", "rows"), [two_layers(rank=60), (convolutions(hidden=64), {"x": PICTURES})], ids=["products", "pictures"]
)
def test_it_answers_nearly_as_before_with_half_the_bytes(model: Model, rows: Any):
    made = in_half(model)
    onnx.checker.check_model(made)
    assert ends(made) == ends(model)
    truth = answers(model, rows)
    for found in (answers(made, rows), exactly(made, rows)):
        assert 0 < np.abs(found - truth).mean() / truth.std() < 0.002
        assert found.dtype == np.float32
    assert model.ByteSize() / made.ByteSize() > 1.8
    assert made.SerializeToString() == in_half(model).SerializeToString()
    assert set(types_within(made).values()) == {TensorProto.FLOAT16}


def test_numbers_are_scaled_before_and_after_in_full_precision():
    """Cells, and what is answered, may be larger than FP16 can hold."""
    layer, rows = two_layers(rank=60)
    before = [helper.make_node("Sub", ["raw", "mean"], ["moved"]), helper.make_node("Div", ["moved", "scale"], ["x"])]
    after = [helper.make_node("Mul", ["out", "unit"], ["times"]), helper.make_node("Add", ["times", "base"], ["y"])]
    for node in layer.graph.node:
        node.output[:] = ["out" if name == "y" else name for name in node.output]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in layer.graph.initializer}
    weights |= {"mean": [3e6], "scale": [2e5], "unit": [1e5], "base": [5e5]}
    model = model_of([*before, *layer.graph.node, *after], weights, {"raw": [None, 64]})
    raw = {"raw": (rows["x"] * 2e5 + 3e6).astype(np.float32)}
    truth, made = answers(model, raw), in_half(model)
    assert truth.max() > 65504
    for found in (answers(made, raw), exactly(made, raw)):
        assert np.abs(found - truth).mean() / truth.std() < 0.01
    within = types_within(made)
    assert {within[name] for name in ("Sub", "Div", "Mul", "Add")} == {TensorProto.FLOAT}
    assert {within[name] for name in ("Gemm", "Relu", "MatMul")} == {TensorProto.FLOAT16}


def test_weights_that_it_cannot_hold_stay_as_they_are():
    model, rows = two_layers(rank=60)
    wide = numpy_helper.to_array(model.graph.initializer[0]) * 1e6
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(wide.astype(np.float32), "w1"))
    rows = {"x": rows["x"] * np.float32(1e-6)}
    truth, made = answers(model, rows), in_half(model)
    assert np.abs(exactly(made, rows) - truth).mean() / truth.std() < 0.002
    assert (types_within(made)["Gemm"], types_within(made)["MatMul"]) == (TensorProto.FLOAT, TensorProto.FLOAT16)
    second = next(tensor for tensor in model.graph.initializer if tensor.name == "w2")
    second.CopyFrom(numpy_helper.from_array(np.full((96, 64), -7e4, np.float32), "w2"))
    with pytest.raises(ValueError, match="whose constants half precision can hold"):
        in_half(model)


def test_a_mask_of_huge_numbers_is_no_infinity():
    """Where all of a row is masked, infinities would make it undefined."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("Sub", ["one", "kept"], ["left"]),
        helper.make_node("Mul", ["left", "huge"], ["mask"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Where", ["read", "masked", "lowest"], ["chosen"]),
        helper.make_node("Softmax", ["chosen"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    weights = {"w": rng.normal(size=(8, 8)), "v": rng.normal(size=(8, 4)), "one": 1, "huge": -1e9, "lowest": -3.4e38}
    model = model_of(nodes, weights, {"x": [None, 8], "kept": [None, 8]})
    model.graph.input.append(helper.make_tensor_value_info("read", TensorProto.BOOL, [None, 8]))
    kept = np.ones((6, 8), np.float32)
    kept[0], kept[1, 3:] = 0, 0
    read = rng.random((6, 8)) > 0.2
    read[0] = True
    rows = {"x": rng.normal(size=(6, 8)).astype(np.float32), "kept": kept, "read": read}
    made = in_half(model)
    found, truth = exactly(made, rows), answers(model, rows)
    assert np.isfinite(found[0]).all()
    assert found[1:] == pytest.approx(truth[1:], abs=0.01)
    assert types_within(made)["Softmax"] == TensorProto.FLOAT16


def test_a_small_number_that_is_divided_by_does_not_vanish():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "tiny"], ["some"]),
        helper.make_node("Div", ["h", "some"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"]),
    ]
    model = model_of(nodes, {"w": np.eye(4), "tiny": 1e-12}, {"x": [None, 4]})
    assert exactly(in_half(model), {"x": np.zeros((2, 4), np.float32)}).tolist() == [[0.0] * 4] * 2


def test_functions_and_constants_of_an_exporter_are_followed():
    inner = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
        helper.make_node("Mul", ["a", "two"], ["b"]),
    ]
    twice = helper.make_function("own", "Twice", ["a"], ["b"], inner, [helper.make_opsetid("", 21)])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Twice", ["h"], ["t"], domain="own"),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    weights = {"w": np.random.default_rng(0).normal(size=(32, 32)) / 6}
    model = model_of(nodes, weights, {"x": [None, 32]}, functions=[twice])
    rows = {"x": np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)}
    made = in_half(model)
    assert exactly(made, rows) == pytest.approx(answers(model, rows), abs=0.02)
    assert types_within(made)["Mul"] == TensorProto.FLOAT16


def test_weights_that_are_stored_in_half_precision_may_come_first_and_twice_is_once():
    model, rows = two_layers(rank=60)
    made = in_half(half_weights(model))
    onnx.checker.check_model(made)
    truth = answers(model, rows)
    assert np.abs(exactly(made, rows) - truth).mean() / truth.std() < 0.002
    assert model.ByteSize() / made.ByteSize() > 1.8
    with pytest.raises(ValueError, match="no product of floats"):
        in_half(in_half(model))


@pytest.mark.parametrize("name", ["mlp", "ft_transformer", *TINY_PICTURES, *TINY_TEXTS])
def test_networks_of_every_family_answer_as_before(
    make_job: MakeJob, mixed: pl.DataFrame, digits: pl.DataFrame, tmp_path: Path, name: str
):
    spec: dict[str, Any] = {"family": name, "training": {"epochs": 1, "batch_size": 32}}
    if name in TINY_PICTURES:
        job = make_job(digits[:300], data="image", target="label", params=TINY_PICTURES[name], **spec)
    elif name in TINY_TEXTS:
        job = make_job(reviews(), params=TINY_TEXTS[name], **spec)
    else:
        job = make_job(mixed, features={"drop": ["amount"]}, **spec)
    train.run(job)
    raw = (job.output / "model.onnx").read_bytes()
    material = Material(raw, *_rows(job), 0, tmp_path)
    maker, judge = Maker(material), material.judge
    recipes = [[HALF], *([[{"step": "fuse"}, HALF]] if name == "transformer" else [])]
    truth = judge.answers(raw)
    for recipe in recipes:
        given = [{"fast_gelu": False, **step} if step["step"] == "fuse" else step for step in recipe]
        made = maker.graph(given)
        assert "Cast" in operators_of(made)
        assert judge.answers(made.SerializeToString()) == pytest.approx(truth, abs=0.01)
        assert len(raw) > made.ByteSize()


def _rows(job: Any) -> tuple[Any, Judge]:
    from workers.data.prepare import reload  # noqa: PLC0415 - of this helper alone
    from workers.jobs.judging import Version  # noqa: PLC0415 - the same

    version = Version(job.output)
    prepared = reload(job, version.signature, job.output / "split.parquet")
    return prepared, Judge("classification", *prepared.part("validation"), Rule(), 1)


def test_a_search_on_a_gpu_begins_with_it_and_puts_it_after_what_goes_together(tmp_path: Path):
    nothing: Any = None
    material = Material(b"", nothing, nothing, 0, tmp_path)
    for model in (convolutions(hidden=512), two_layers(rank=60)[0]):
        gpu, cpu = (Space.of(material, model, half=half) for half in (True, False))
        recipes = [gpu.recipe(picked) for picked in gpu.first]
        assert recipes[0] == [HALF]
        assert all(recipes)
        assert "half" in gpu.choices["precision"]
        assert "half" not in cpu.choices["precision"]
        assert usual_precision(model, half=True) == HALF
        picked = {**gpu.first[0], "rank": "0.9", "precision": "half"}
        assert gpu.recipe(picked) == [{"step": "low_rank", "energy": 0.9}, HALF]
        assert gpu.recipe({**picked, "storage": "bytes"}) is None  # there is nothing left to store otherwise


def test_it_is_told_as_what_it_is():
    assert name_of([HALF]) == "fp16"
    assert name_of([{"step": "prune", "keep": 0.5}, HALF]) == "pruned-fp16"
    told = described([HALF], 0, 512, None)
    assert (told["method"], told["precision"], told["steps"]) == ("half", "fp16", [HALF])


@pytest.fixture
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime and the driver seem to have one; models run on the processor."""
    monkeypatch.setattr(Provider, "on_gpu", classmethod(lambda cls, _device: cls()))
    monkeypatch.setattr("workers.evaluation.device.lacks_cuda", lambda: None)
    monkeypatch.setattr("app.core.host.gpu_name", lambda number: ["NVIDIA H200"][number])
    monkeypatch.setattr("workers.evaluation.latency._BUDGET_S", 0.003)


def job_on(make_job: MakeJob, mixed: pl.DataFrame, kind: str, device: str, **spec: Any) -> Any:
    """A job on a version of a small network, that is trained once."""
    trained = make_job(mixed, family="mlp", features={"drop": ["amount"]}, training={"epochs": 1})
    if not (trained.output / "model.onnx").exists():
        train.run(trained)
    job = make_job(mixed, name=f"{kind}-{device}", kind=kind)
    job.spec = {"kind": kind, "model": "m", "version": 1, "resources": {"device": device}, **spec}
    (job.input / "model").symlink_to(trained.output)
    return job


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_what_a_gpu_measures_is_kept_for_that_gpu(make_job: MakeJob, mixed: pl.DataFrame):
    job = job_on(make_job, mixed, "compress", "cuda", budget={"max_metric_drop": 0.1})
    result = compress.run(job)
    [variant] = result["variants"]
    assert (variant["name"], variant["state"]) == ("fp16", "accepted")
    assert variant["recipe"]["steps"] == [HALF]
    assert variant["latency"]["host"].endswith(" (cuda NVIDIA H200)")
    assert result["compression"]["host"] == variant["latency"]["host"]
    assert "peak_bytes" not in variant["latency"]
    again = job_on(make_job, mixed, "measure", "cuda", budgets={})
    measured = measure.run(again)
    assert measured["host"] == "cuda NVIDIA H200"
    assert all(one["latency"]["host"] == variant["latency"]["host"] for one in measured["variants"])


@pytest.mark.usefixtures("as_if_on_a_gpu")
def test_a_processor_is_measured_unless_a_job_asks_for_the_gpu(make_job: MakeJob, mixed: pl.DataFrame):
    job = job_on(make_job, mixed, "compress", "auto", budget={"max_metric_drop": 0.1}, recipes=[[HALF]])
    result = compress.run(job)
    [one] = result["compression"]["candidates"]
    assert one["recipe"] == [HALF]
    assert "cuda" not in one["latency"]["host"]
    assert one["failed"] is None


@NO_CUDA
@pytest.mark.parametrize(("kind", "run"), [("compress", compress.run), ("measure", measure.run)])
def test_a_job_for_a_gpu_is_refused_where_onnx_runtime_has_none(
    make_job: MakeJob, mixed: pl.DataFrame, kind: str, run: Callable[[Any], Any]
):
    job = job_on(make_job, mixed, kind, "cuda", **({"budgets": {}} if kind == "measure" else {}))
    with pytest.raises(InvalidSpec, match=r"install onnxruntime-gpu in its place, or use auto") as caught:
        run(job)
    assert caught.value.errors[0].loc == ("resources", "device")


@NO_CUDA
def test_a_training_for_a_gpu_is_refused_before_it_begins_if_it_is_to_compress_there(
    make_job: MakeJob, mixed: pl.DataFrame
):
    spec: dict[str, Any] = {"family": "gbdt", "features": {"drop": ["amount"]}, "resources": {"device": "cuda"}}
    job = make_job(mixed, compress={}, **spec)
    with pytest.raises(InvalidSpec, match=r"install onnxruntime-gpu in its place, or use auto") as caught:
        train.run(job)
    assert caught.value.errors[0].loc == ("resources", "device")
    assert not any(event.get("step") == "training" for event in job.seen)
    assert train.run(make_job(mixed, name="plain", **spec))["metrics"]  # which learns on the processor as before
