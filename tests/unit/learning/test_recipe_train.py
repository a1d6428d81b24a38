"""Whole trainings behind a recipe: every family, folds, seeds, compression."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest

from workers.jobs import compress, train

MakeJob = Callable[..., Any]
RECIPE = [
    {"step": "clip", "columns": ["age"], "quantiles": [0.01, 0.99]},
    {"step": "impute", "flag": True},
    {"step": "aggregate", "by": "plan", "column": "age", "functions": ["mean", "std"]},
    {
        "step": "derive",
        "name": "older",
        "expression": 'CASE WHEN city IS NOT NULL THEN ln(age) - "age mean by plan" END',
    },
    {"step": "target_encode", "columns": ["city"]},
    {"step": "polynomial", "columns": ["age", "visits"]},
    {"step": "scale", "method": "yeo_johnson"},
    {"step": "one_hot", "columns": ["plan"]},
]


def _replays(output: Any) -> None:
    golden = json.loads((output / "golden.json").read_text())
    session = ort.InferenceSession((output / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    dtypes = {"FP32": np.float32, "BYTES": object}
    feed = {
        name: np.asarray([np.nan if v is None else v for v in raw["data"]], dtypes[raw["datatype"]]).reshape(
            raw["shape"]
        )
        for name, raw in golden["inputs"].items()
    }
    [answer] = session.run(None, feed)
    assert answer.ravel().tolist() == pytest.approx(next(iter(golden["outputs"].values()))["data"], abs=1e-6)


@pytest.mark.parametrize(
    ("family", "params"),
    [
        ("linear", {}), ("gbdt", {"n_estimators": 60}), ("xgboost", {"n_estimators": 40}), ("naive_bayes", {}),
        ("random_forest", {"n_estimators": 20}), ("mlp", {}),
        ("auto", {"time_limit_s": 60, "folds": 2, "families": ["gbdt", "linear"]}),
    ],
)  # fmt: skip
def test_every_family_learns_behind_a_recipe(
    make_job: MakeJob, mixed: pl.DataFrame, family: str, params: dict[str, Any]
):
    job = make_job(
        mixed, family=family, params=params, training={"epochs": 5}, features={"drop": ["amount"], "steps": RECIPE}
    )
    result = train.run(job)
    assert result["metrics"]["roc_auc"] > 0.8
    assert [c["name"] for c in result["signature"]["columns"]] == ["city", "age", "visits", "member", "plan"]
    _replays(job.output)
    card = json.loads((job.output / "card.json").read_text())
    recipe = card["fit"]["recipe"]
    assert (recipe["version"], [line["step"] for line in recipe["steps"]]) == (1, [step["step"] for step in RECIPE])
    assert recipe["steps"][-1]["columns_after"] == 13


def test_each_fold_fits_a_recipe_of_its_own(make_job: MakeJob, mixed: pl.DataFrame):
    """A category of many values that mean nothing would flatter folds that saw each other's targets."""
    rng = np.random.default_rng(1)
    frame = mixed.select("target", noise=pl.Series(rng.integers(0, 400, len(mixed)).astype(str)))
    features = {"types": {"noise": "category"}, "steps": [{"step": "target_encode", "smooth": 0}]}
    job = make_job(frame, family="linear", features=features, evaluation={"folds": 3})
    train.run(job)
    found = json.loads((job.output / "card.json").read_text())["cross_validation"]["metrics"]["roc_auc"]
    assert abs(found["mean"] - 0.5) < 0.08


def test_the_same_seed_gives_the_same_graph(make_job: MakeJob, mixed: pl.DataFrame):
    steps = [{"step": "impute"}, {"step": "target_encode"}, {"step": "polynomial"}, {"step": "select", "k": 5},
             {"step": "pca", "components": 3}]  # fmt: skip
    graphs = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        spec = {"features": {"drop": ["amount"], "steps": steps}, "training": {"seed": seed}}
        job = make_job(mixed, name=name, family="linear", **spec)
        train.run(job)
        graphs.append((job.output / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1] != graphs[2]


def test_a_version_with_a_recipe_is_compressed(make_job: MakeJob, mixed: pl.DataFrame):
    features = {"drop": ["amount"], "steps": RECIPE}
    job = make_job(mixed, family="random_forest", params={"n_estimators": 60}, features=features)
    train.run(job)
    later = make_job(mixed, name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1, "budget": {"max_metric_drop": 0.2}}
    job.output.rename(later.input / "model")
    [variant] = compress.run(later)["variants"]
    assert (variant["name"], variant["state"]) == ("optimized", "accepted")


def test_a_recipe_that_finds_nothing_to_do_changes_nothing(make_job: MakeJob, wine: pl.DataFrame):
    answers = []
    for name, steps in (("plain", []), ("filled", [{"step": "impute"}])):
        job = make_job(wine, name=name, family="linear", features={"steps": steps})
        answers.append(train.run(job)["metrics"])
    assert answers[0] == answers[1]


def test_a_class_of_one_row_does_not_stop_target_means(make_job: MakeJob, mixed: pl.DataFrame):
    target = ["rare", *mixed["target"].to_list()[1:]]
    frame = mixed.drop("amount").with_columns(target=pl.Series(target))
    job = make_job(frame, family="linear", features={"steps": [{"step": "target_encode"}]})
    assert train.run(job)["metrics"]["accuracy"] > 0.6
