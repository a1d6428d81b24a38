import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from app.core.errors import InvalidData
from app.core.signature import Column, Signature, Tensor
from app.specs.jobs import SplitSpec
from workers.data.splits import load_split, split_rows
from workers.data.tables import Notes, as_text, check_classes, read_target, table_inputs
from workers.evaluation.latency import compare_latency
from workers.evaluation.metrics import baseline, default_metric, evaluate, metric_drop, positive_class
from workers.evaluation.sketch import make_sketch
from workers.export.graph import Graph
from workers.host import host_name

Y = np.asarray([0, 0, 0, 1, 1])
P = np.asarray([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.55, 0.45]])


def test_binary_metrics():
    found = evaluate("classification", Y, P, positive=1)
    assert found == pytest.approx(
        {
            "accuracy": 3 / 5,
            "balanced_accuracy": (2 / 3 + 1 / 2) / 2,
            "f1": 0.5,
            "precision": 0.5,
            "recall": 0.5,
            "roc_auc": 5 / 6,
            "log_loss": -np.log([0.9, 0.8, 0.4, 0.7, 0.45]).mean(),
        },
        rel=1e-5,
    )


def test_the_rarer_class_is_positive():
    assert positive_class(np.asarray([0, 0, 1])) == 1
    assert positive_class(np.asarray([0, 1, 1])) == 0
    assert positive_class(np.asarray([0, 1])) == 1
    assert evaluate("classification", Y, P, positive=0)["recall"] == pytest.approx(2 / 3)


def test_metrics_that_are_undefined_are_left_out():
    found = evaluate("classification", np.asarray([1, 1]), np.asarray([[0.0, 1.0], [1.0, 0.0]]))
    assert "roc_auc" not in found
    assert all(np.isfinite(value) for value in found.values())


def test_multi_class_metrics_skip_absent_classes():
    p = np.asarray([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    found = evaluate("classification", np.asarray([0, 1, 0]), p)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["roc_auc"] == 1.0


def test_regression_metrics():
    found = evaluate("regression", np.asarray([1.0, 2, 3]), np.asarray([1.0, 2, 5]))
    assert found == pytest.approx({"rmse": np.sqrt(4 / 3), "mae": 2 / 3, "r2": -1.0})


def test_main_metrics_and_drops():
    assert [default_metric(*x) for x in (("classification", 2), ("classification", 3), ("regression", 0))] == [
        "roc_auc", "accuracy", "rmse",
    ]  # fmt: skip
    assert metric_drop("accuracy", 0.9, 0.88) == pytest.approx(0.02)
    assert metric_drop("rmse", 50.0, 51.0) == pytest.approx(0.02)
    assert metric_drop("rmse", 50.0, 49.0) == pytest.approx(-0.02)


def test_baselines():
    assert baseline("regression", np.asarray([1.0, 3.0]), 2, 0).tolist() == [2.0, 2.0]
    assert baseline("classification", np.asarray([0, 0, 0, 1]), 1, 2).tolist() == [[0.75, 0.25]]


def test_a_split_is_disjoint_stratified_and_repeatable(tmp_path: Path):
    y = np.asarray([0] * 80 + [1] * 20)
    split = split_rows(y, "classification", SplitSpec(), Notes())
    assert split.sizes() == {"train": 70, "validation": 10, "test": 20}
    assert sorted([*split.train, *split.validation, *split.test]) == list(range(100))
    assert [int(y[rows].sum()) for rows in (split.train, split.validation, split.test)] == [14, 2, 4]
    again = split_rows(y, "classification", SplitSpec(), Notes())
    assert again.test.tolist() == split.test.tolist()
    other = split_rows(y, "classification", SplitSpec(seed=1), Notes())
    assert other.test.tolist() != split.test.tolist()
    split.save(np.arange(1000, 1100), tmp_path / "split.parquet")
    kept = np.asarray([i for i in range(1000, 1100) if i != 1000 + split.test[0]])
    loaded = load_split(tmp_path / "split.parquet", kept)
    assert kept[loaded.test].tolist() == [1000 + i for i in split.test[1:]]


def test_stratified_regression_is_refused():
    with pytest.raises(InvalidData, match="needs classes"):
        split_rows(np.arange(50.0), "regression", SplitSpec(method="stratified"), Notes())


def test_labels_as_a_person_writes_them():
    assert as_text(pl.Series([1.0, None, 0.0])).to_list() == ["1", None, "0"]
    assert as_text(pl.Series([1.5, 2.0])).to_list() == ["1.5", "2.0"]
    assert as_text(pl.Series([True, False])).to_list() == ["true", "false"]
    assert check_classes(pl.Series(["10", "9", "-1"])) == ("-1", "9", "10")
    assert read_target(pl.Series("t", ["b", "a", "b"]), "classification").y.tolist() == [1, 0, 1]


def test_columns_are_read_as_the_signature_says():
    columns = (
        Column("text", "number", "numeric", 0), Column("flag", "boolean", "numeric", 1),
        Column("code", "category", "categorical", 0),
    )  # fmt: skip
    tensors = (Tensor("numeric", "FP32", (-1, 2)), Tensor("categorical", "BYTES", (-1, 1)))
    signature = Signature("classification", tensors, (), columns)
    frame = pl.DataFrame({"text": [" 1.5", "many", None], "flag": ["Yes", "no", "perhaps"], "code": [7, None, 8]})
    inputs = table_inputs(frame, signature)
    expected = np.asarray([[1.5, 1], [np.nan, 0], [np.nan, np.nan]], np.float32)
    assert np.array_equal(inputs["numeric"], expected, equal_nan=True)
    assert inputs["categorical"].tolist() == [["7"], [""], ["8"]]


def test_a_sketch_counts_every_row():
    tensors = (Tensor("numeric", "FP32", (-1, 1)), Tensor("categorical", "BYTES", (-1, 1)))
    columns = (Column("n", "number", "numeric", 0), Column("c", "category", "categorical", 0))
    signature = Signature("classification", tensors, (), columns, ("no", "yes"))
    inputs = {
        "numeric": np.asarray([[1], [2], [2], [np.nan]], np.float32),
        "categorical": np.asarray([["a"], ["a"], [""], ["b"]], object),
    }
    sketch = make_sketch(signature, inputs, np.asarray([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], np.float32))
    number = sketch["inputs"]["n"]
    assert sum(number["counts"]) == 3
    assert number["missing"] == 1
    assert len(number["edges"]) == len(number["counts"]) + 1
    assert sketch["inputs"]["c"] == {"type": "categories", "counts": {"a": 2, "b": 1}, "other": 0, "missing": 1}
    assert sketch["outputs"]["label"]["counts"] == {"no": 1, "yes": 3}
    json.dumps(sketch, allow_nan=False)


def test_latency_names_host_and_threads():
    graph = Graph()
    graph.add("Relu", "numeric", output="value")
    tensor = Tensor("numeric", "FP32", (-1, 1))
    model = graph.model((tensor,), (Tensor("value", "FP32", (-1, 1)),)).SerializeToString()
    found = compare_latency([model, model], {"numeric": np.ones((3, 1), np.float32)}, threads=1, rounds=1)
    assert [(x.batch, x.threads, x.host) for x in found] == [(256, 1, host_name())] * 2
    assert all(0 < x.p50_ms <= x.p95_ms and x.items_per_s > 0 for x in found)
