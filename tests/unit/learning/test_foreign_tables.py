"""Imported models of tables: boosted trees learn their answers, and take their place as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
from onnx import TensorProto
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import SVC

from app.core.signature import Signature, Tensor
from workers.compression.foreign import in_its_place, labels_told
from workers.compression.foreign_tables import is_table
from workers.compression.material import Material
from workers.compression.students import can_boost
from workers.data.prepare import Prepared
from workers.data.splits import Split
from workers.data.tables import Notes
from workers.evaluation.answers import Answering
from workers.evaluation.judge import Judge
from workers.export.graph import Graph
from workers.jobs import compress
from workers.learning import Rule

MakeJob = Callable[..., Any]
SEARCH = {"max_metric_drop": 0.3, "time_limit_s": 1.0, "objective": "bytes"}
OPSETS = {"": 21, "ai.onnx.ml": 3}


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how fast a model is."""
    monkeypatch.setattr("workers.evaluation.latency._BUDGET_S", 0.01)


def ends(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    """Name, element type and rank of what goes in and comes out."""
    graph = model.graph
    return [
        (value.name, value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.output)
    ]


def imported(make_job: MakeJob, frame: pl.DataFrame, model: Any, signature: Signature, mapping: dict[str, Any]) -> Any:
    """A `compress` job of the model, with everything that its search may do."""
    job = make_job(frame, kind="compress")
    spec = {"kind": "compress", "model": "m", "version": 1, "dataset": "d@1", "mapping": mapping, "budget": SEARCH}
    job.spec = spec
    folder = job.input / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "signature.json").write_text(json.dumps(signature.to_json()))
    (folder / "card.json").write_text("{}")
    return job


def best(job: Any, result: dict[str, Any]) -> onnx.ModelProto:
    """The first of the front."""
    variant = next(one for one in result["variants"] if one["state"] == "accepted")
    assert variant["name"].startswith("distilled")
    return onnx.load(Path(job.output) / variant["path"])


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, feed)
    return found


def test_a_forest_that_scikit_learn_has_exported_becomes_small_and_answers_as_before(
    make_job: MakeJob, cancer: pl.DataFrame
):
    names = [name for name in cancer.columns if name != "target"]
    x, y = cancer.select(names).to_numpy().astype(np.float32), cancer["target"].to_numpy()
    forest = RandomForestClassifier(200, random_state=0).fit(x, y)
    model = to_onnx(forest, x[:1], options={"zipmap": False}, target_opset=OPSETS)
    label, probabilities = model.graph.output
    outputs = (Tensor(label.name, "BYTES", (-1,)), Tensor(probabilities.name, "FP32", (-1, 2)))
    signature = Signature("inference", (Tensor("X", "FP32", (-1, 30)),), outputs, ())
    mapping = {
        "task": "classification", "target": "target", "inputs": {"X": {"columns": names}},
        "classes": [str(one) for one in forest.classes_],
    }  # fmt: skip
    job = imported(make_job, cancer, model, signature, mapping)
    result = compress.run(job)
    small = best(job, result)
    assert ends(small) == ends(model)
    assert model.ByteSize() > 3 * small.ByteSize()
    labels, shares = run(model, {"X": x})
    small_labels, small_shares = run(small, {"X": x})
    assert (small_labels.dtype, small_shares.dtype) == (labels.dtype, shares.dtype)
    assert (labels == small_labels).mean() > 0.97
    assert small_labels.tolist() == forest.classes_[small_shares.argmax(axis=1)].tolist()
    assert np.abs(shares - small_shares).mean() < 0.05


def people(estimator: Any) -> tuple[pl.DataFrame, onnx.ModelProto, Signature, dict[str, Any]]:
    """Rows of a text and two numbers, and a pipeline of them that ends with the estimator, a tensor for each column."""
    rng = np.random.default_rng(0)
    count = 400
    frame = pl.DataFrame({
        "colour": rng.choice(["red", "green", "blue"], count),
        "age": rng.integers(0, 90, count),
        "income": rng.normal(size=count).astype(np.float32),
    })  # fmt: skip
    red, old = (frame["colour"] == "red").to_numpy(), (frame["age"] > 40).to_numpy()
    wealthy = frame["income"].to_numpy() * 2 + old + red * 2 > 1.5
    frame = frame.with_columns(pl.Series("target", np.where(wealthy, "yes", "no")))
    columns = frame.drop("target").to_pandas()
    pipe = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["colour"]), remainder="passthrough"),
        estimator,
    ).fit(columns, frame["target"].to_numpy())
    types = [
        ("colour", StringTensorType([None, 1])), ("age", Int64TensorType([None, 1])),
        ("income", FloatTensorType([None, 1])),
    ]  # fmt: skip
    model = to_onnx(pipe, initial_types=types, options={"zipmap": False}, target_opset=OPSETS)
    label, probabilities = (value.name for value in model.graph.output)
    signature = Signature(
        "inference",
        (Tensor("colour", "BYTES", (-1, 1)), Tensor("age", "INT64", (-1, 1)), Tensor("income", "FP32", (-1, 1))),
        (Tensor(label, "BYTES", (-1,)), Tensor(probabilities, "FP32", (-1, 2))),
        (),
    )
    given = {name: {"columns": [name]} for name in ("colour", "age", "income")}
    mapping = {"task": "classification", "target": "target", "inputs": given, "classes": ["no", "yes"]}
    return frame, model, signature, mapping


def test_texts_and_numbers_of_several_tensors_are_read_and_neighbours_are_taught(make_job: MakeJob):
    frame, model, signature, mapping = people(KNeighborsClassifier(7))
    job = imported(make_job, frame, model, signature, mapping)
    small = best(job, compress.run(job))
    assert ends(small) == ends(model)
    feed = {
        "colour": frame["colour"].to_numpy().astype(object).reshape(-1, 1),
        "age": frame["age"].to_numpy().reshape(-1, 1),
        "income": frame["income"].to_numpy().reshape(-1, 1),
    }
    (labels, _), (small_labels, _) = run(model, feed), run(small, feed)
    assert set(small_labels) == {"no", "yes"}
    assert (labels == small_labels).mean() > 0.9


@pytest.mark.filterwarnings("ignore:Attribute `prob:FutureWarning")  # the exporter looks at what scikit-learn drops
def test_support_vectors_are_taught(make_job: MakeJob):
    """Whether trees are better than so few of them is another question, which the clock answers."""
    job = imported(make_job, *people(CalibratedClassifierCV(SVC(), ensemble=False)))
    first = compress.run(job)["compression"]["candidates"][0]
    assert (first["recipe"][0]["step"], first["failed"], first["stops"]) == ("student", None, [])
    assert first["loss"]["measured"] < 0.05


def test_values_come_in_the_shape_and_type_of_the_full_model(make_job: MakeJob, diabetes: pl.DataFrame):
    names = [name for name in diabetes.columns if name != "target"]
    x, y = diabetes.select(names).to_numpy().astype(np.float32), diabetes["target"].to_numpy()
    model = to_onnx(RandomForestRegressor(100, max_depth=4, random_state=0).fit(x, y), x[:1], target_opset=OPSETS)
    out = Tensor(model.graph.output[0].name, "FP32", (-1, 1))
    signature = Signature("inference", (Tensor("X", "FP32", (-1, len(names))),), (out,), ())
    mapping = {"task": "regression", "target": "target", "inputs": {"X": {"columns": names}}}
    job = imported(make_job, diabetes, model, signature, mapping)
    job.spec["budget"] = {**SEARCH, "max_metric_drop": 1.0}
    small = best(job, compress.run(job))
    assert ends(small) == ends(model)
    (full,), (values,) = run(model, {"X": x}), run(small, {"X": x})
    assert (values.shape, values.dtype) == (full.shape, full.dtype)
    assert np.corrcoef(values.ravel(), full.ravel())[0, 1] > 0.9


@pytest.mark.parametrize(("form", "read"), [
    ("probabilities", lambda p: p), ("logits", lambda p: np.log(np.maximum(p, 1e-7))),
    ("probability", lambda p: p[:, 1:]), ("logit", lambda p: np.log(np.maximum(p, 1e-7)) @ [[-1.0], [1.0]]),
])  # fmt: skip
def test_answers_take_the_form_that_the_full_model_gives(form: Any, read: Any, tmp_path: Path):
    """A student that tells its two inputs as probabilities, beside a model of half precision."""
    shares = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    student = Graph()
    student.add("Identity", "numeric", output="probabilities")
    pair = (Tensor("numeric", "FP32", (-1, 2)),), (Tensor("probabilities", "FP32", (-1, 2)),)
    columns = -1 if form in {"probabilities", "logits"} else 1
    signature = Signature("inference", (Tensor("v0", "FP64", (-1, 2)),), (Tensor("c0", "FP16", (-1, columns)),), ())
    nothing, split = np.empty(0), Split(np.arange(2), np.arange(0), np.arange(0), "given")
    prepared = Prepared(signature, {"v0": shares.astype(np.float64)}, np.arange(2), np.arange(2), split, Notes())
    judge = Judge("classification", {}, nothing, Rule(), 1, Answering("c0", 32, form))
    made = in_its_place(student.model(*pair), Material(b"", prepared, judge, 0, tmp_path), {})
    (told,) = run(made, {"v0": shares.astype(np.float64)})
    assert told.dtype == np.float16
    assert told == pytest.approx(read(shares), abs=0.02)


@pytest.mark.parametrize(("shares", "told", "why"), [
    ([[0.2, 0.8], [0.7, 0.3]], "ArgMin", None),  # what it calls its classes is its own affair
    ([[0.2, 0.8], [0.3, 0.7]], "ArgMax", "no row is of class 0"),
    ([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], "Above", "tells the likeliest class of 67%"),
])  # fmt: skip
def test_labels_are_those_of_the_likeliest_class_or_are_not_known(
    shares: list[list[float]], told: str, why: str | None, tmp_path: Path
):
    """Of a model that gives its input as probabilities; `Above` tells whether the first class has more than 0.65."""
    rows = np.array(shares, np.float32)
    graph = Graph()
    graph.add("Identity", "x", output="p")
    if told == "Above":
        first = graph.add("Gather", "x", graph.constant(0, np.int64), axis=1)
        graph.add("Cast", graph.add("Less", graph.constant(0.65, np.float32), first), to=TensorProto.INT64, output="l")
    else:
        graph.add(told, "x", axis=1, keepdims=0, output="l")
    ends = (Tensor("x", "FP32", (-1, 2)),), (Tensor("p", "FP32", (-1, 2)), Tensor("l", "INT64", (-1,)))
    full = graph.model(*ends)
    student = Graph()
    student.add("Identity", "numeric", output="probabilities")
    pair = (Tensor("numeric", "FP32", (-1, 2)),), (Tensor("probabilities", "FP32", (-1, 2)),)
    count = np.arange(len(rows))
    prepared = Prepared(
        Signature("inference", *ends, ()), {"x": rows}, count % 2, count, Split(count, count[:0], count[:0], "given"),
        Notes(),
    )  # fmt: skip
    judge = Judge("classification", {}, np.empty(0), Rule(), 1, Answering("p", 32, "probabilities"))
    material = Material(full.SerializeToString(), prepared, judge, 0, tmp_path)
    if why is not None:
        with pytest.raises(ValueError, match=why):
            labels_told(material, count, rows)
        return
    made = in_its_place(student.model(*pair), material, labels_told(material, count, rows))
    assert [one.tolist() for one in run(made, {"x": rows})] == [one.tolist() for one in run(full, {"x": rows})]


@pytest.mark.parametrize(("texts", "known"), [(["red", "green"] * 20, True), ([f"room {i}" for i in range(40)], False)])
def test_texts_that_differ_in_every_row_are_no_categories(texts: list[str], known: bool, tmp_path: Path):  # noqa: FBT001 - a parameter
    """As a network over texts has them, whose one input has the form of a column."""
    ends = (Tensor("text", "BYTES", (-1, 1)),), (Tensor("p", "FP32", (-1, 2)),)
    rows, inputs = np.arange(40), {"text": np.array(texts, object).reshape(-1, 1)}
    split = Split(rows, rows[:0], rows[:0], "given")
    prepared = Prepared(Signature("inference", *ends, ()), inputs, rows % 2, rows, split, Notes())
    judge = Judge("classification", {}, np.empty(0), Rule(), 1, Answering("p", 32, "probabilities"))
    assert can_boost(Material(b"", prepared, judge, 0, tmp_path)) is known


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ([Tensor("x", "FP32", (-1, 3, 8, 8))], [Tensor("p", "FP32", (-1, 2))]),
        ([Tensor("x", "INT8", (-1, 3))], [Tensor("p", "FP32", (-1, 2))]),
        ([Tensor("x", "FP32", (-1, 3))], [Tensor("p", "FP32", (-1, 2)), Tensor("leaf", "FP32", (-1, 100))]),
        ([Tensor("x", "FP32", (-1, 3))], [Tensor("p", "FP32", (-1, 2)), Tensor("leaf", "INT64", (-1, 100))]),
    ],
)
def test_what_no_boosted_trees_can_take_the_place_of(inputs: list[Tensor], outputs: list[Tensor]):
    signature = Signature("inference", tuple(inputs), tuple(outputs), ())
    assert not is_table(signature, Answering("p", 1, "probabilities"), "classification")
    plain = Signature("inference", (Tensor("x", "FP32", (-1, 3)),), (Tensor("p", "FP32", (-1, 2)),), ())
    assert is_table(plain, Answering("p", 1, "probabilities"), "classification")
