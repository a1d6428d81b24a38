"""Trainings that are repeated and compared."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from workers.jobs import reproduce, train

MakeJob = Callable[..., Any]
MLP: dict[str, Any] = {"family": "mlp", "training": {"epochs": 3}, "limits": {"threads": 1}}


def _again(make_job: MakeJob, trained: Any, frame: pl.DataFrame, **changes: Any) -> dict[str, Any]:
    job = make_job(frame, name="again", kind="reproduce")
    spec = {name: value for name, value in trained.spec.items() if name != "limits"} | changes
    job.spec = {"kind": "reproduce", "model": "m", "version": 1, "trained": spec, "limits": {"threads": 2}}
    shutil.copytree(trained.output, job.input / "model")
    found = reproduce.run(job)
    assert list(job.output.iterdir()) == []
    return found


@pytest.mark.parametrize("spec", [MLP, {"family": "gbdt", "target": "amount", "task": "regression"}])
def test_the_same_spec_and_data_give_the_same_model(make_job: MakeJob, mixed: pl.DataFrame, spec: dict[str, Any]):
    """With as many threads as then, though the worker would allow more."""
    trained = make_job(mixed.head(400), **spec)
    train.run(trained)
    found = _again(make_job, trained, mixed.head(400))
    assert (found["verdict"], found["same_split"], found["same_graph"]) == ("identical", True, True)
    assert found["answers"]["largest_difference"] == 0
    assert all(metric["then"] == metric["now"] for metric in found["metrics"].values())
    assert found["environment"] == {}


def test_another_seed_is_told_from_the_same_model(make_job: MakeJob, mixed: pl.DataFrame):
    trained = make_job(mixed.head(400), **MLP)
    train.run(trained)
    found = _again(make_job, trained, mixed.head(400), training={"epochs": 3, "seed": 1})
    assert found["verdict"] in {"equivalent", "different"}
    assert not found["same_graph"]
    assert found["answers"]["largest_difference"] > 0
    assert 0 <= found["answers"]["same_label"] <= 1
    outside = [name for name, m in found["metrics"].items() if not m["interval"][0] <= m["now"] <= m["interval"][1]]
    assert (found["verdict"] == "different") == bool(outside)


def test_what_has_changed_around_it_is_named(make_job: MakeJob, mixed: pl.DataFrame):
    """Data that lost its labels' meaning, and a version that was trained by another library and with more threads."""
    trained = make_job(mixed.head(400), **MLP)
    train.run(trained)
    card = trained.output / "card.json"
    told = json.loads(card.read_text())
    told["environment"] |= {"threads": 64, "libraries": told["environment"]["libraries"] | {"torch": "1.0.0"}}
    card.write_text(json.dumps(told))
    other = mixed.head(400).with_columns(pl.col("target").shuffle(seed=1))
    found = _again(make_job, trained, other)
    assert found["verdict"] == "different"
    assert found["environment"]["threads"] == {"then": 64, "now": 2}
    assert found["environment"]["torch"]["then"] == "1.0.0"
    auc = found["metrics"]["roc_auc"]
    assert auc["now"] < auc["interval"][0]
    assert not auc["within_interval"]


@pytest.mark.parametrize(
    "spec",
    [
        {"evaluation": {"threshold": 0.3}},
        {"task": "regression", "target": "amount", "evaluation": {"intervals": 0.8}, "features": {"drop": ["target"]}},
    ],
)
def test_thresholds_and_intervals_are_compared_too(make_job: MakeJob, mixed: pl.DataFrame, spec: dict[str, Any]):
    trained = make_job(mixed, family="linear", **spec)
    train.run(trained)
    found = _again(make_job, trained, mixed)
    assert found["verdict"] == "identical"
    assert found["answers"].get("same_label") == (None if "task" in spec else 1.0)
    assert ("coverage" in found["metrics"]) == ("task" in spec)
