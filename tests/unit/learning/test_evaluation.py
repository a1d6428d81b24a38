import json

import numpy as np
import pytest

from app.core.errors import ParityFailed
from app.core.host import host_name
from app.core.signature import Column, Signature, Tensor
from app.specs.evaluation import default_metric
from workers.evaluation.latency import compare_latency
from workers.evaluation.metrics import baseline, evaluate, metric_drop, positive_class
from workers.evaluation.sketch import make_sketch
from workers.export.graph import Graph
from workers.export.parity import check_parity
from workers.learning import Array, Inputs, Rule

Y = np.asarray([0, 0, 0, 1, 1])
P = np.asarray([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.55, 0.45]])


def test_binary_metrics():
    names = ["accuracy", "balanced_accuracy", "f1", "precision", "recall", "roc_auc", "log_loss"]
    found = evaluate("classification", Y, P, rule=Rule(1), names=names)
    assert list(found) == names
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
    assert evaluate("classification", Y, P, rule=Rule(0))["recall"] == pytest.approx(2 / 3)


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
    assert found == pytest.approx({"rmse": np.sqrt(4 / 3), "mae": 2 / 3, "r2": -1.0, "mape": 2 / 9})
    assert "mape" not in evaluate("regression", np.asarray([0.0, 2, 3]), np.asarray([1.0, 2, 5]))


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
    found = compare_latency([model, model], {"numeric": np.ones((3, 1), np.float32)}, threads=1, batch=256, rounds=1)
    assert [(x.batch, x.threads, x.host) for x in found] == [(256, 1, host_name())] * 2
    assert all(0 < x.p50_ms <= x.p95_ms and x.items_per_s > 0 for x in found)


def test_answers_that_hardly_differ_are_compared_by_the_targets_spread():
    """A forest that learnt nothing answers nearly the same to all; its own spread is little more than rounding."""
    graph = Graph()
    filled = graph.add("Where", graph.add("IsNaN", "numeric"), graph.constant([0], np.float32), "numeric")
    graph.add("Reshape", filled, graph.constant([-1], np.int64), output="value")
    model = graph.model((Tensor("numeric", "FP32", (-1, 1)),), (Tensor("value", "FP32", (-1,)),)).SerializeToString()
    rows = np.linspace(-1e-6, 1e-6, 50, dtype=np.float32)[:, None]

    def trained(inputs: Inputs) -> Array:
        return np.nan_to_num(inputs["numeric"][:, 0]).astype(np.float64) * 1.001

    with pytest.raises(ParityFailed):
        check_parity(model, trained, {"numeric": rows}, "regression", 1)
    assert check_parity(model, trained, {"numeric": rows}, "regression", 1, spread=1.0).max_difference < 1e-8
