"""Rows that may have several labels: learned, exported, measured and served."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
from sklearn import metrics as sk

from app.core.errors import InvalidData, InvalidSpec
from app.core.instance_schema import prediction_schema
from app.core.signature import Signature
from app.serving.predictions import prediction_encoder
from workers.automl.portfolio import PLANS, Candidate
from workers.automl.score import scorer
from workers.context import Stopped
from workers.data.values import read_target
from workers.evaluation.complexity import complexity
from workers.evaluation.intervals import weighted
from workers.evaluation.metrics import LOWER_IS_BETTER, baseline, evaluate
from workers.export.runtime import open_session, predict
from workers.jobs import compress, train
from workers.learning import Rule

MakeJob = Callable[..., Any]
TRAINING = {"epochs": 6, "batch_size": 32, "optimizer": {"lr": 0.02}}


@pytest.fixture(scope="module")
def tagged() -> pl.DataFrame:
    """600 rows of three labels, each by a rule of its own; some rows have none, and one of 600 a fourth."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(600, 4))
    kind = rng.choice(["new", "old"], 600)
    has = {"cheap": x[:, 0] + 0.3 * rng.normal(size=600) > 0, "large": x[:, 1] - x[:, 2] > 0.5, "retro": kind == "old"}
    cells = [" | ".join(name for name, rows in has.items() if rows[at]) or "|" for at in range(600)]
    cells[0] = "cheap|once"
    return pl.DataFrame({**{f"x{i}": x[:, i] for i in range(4)}, "kind": kind, "target": cells})


@pytest.mark.parametrize("family", ["linear", "mlp"])  # ft_transformer learns by the same code as mlp
def test_tables(make_job: MakeJob, tagged: pl.DataFrame, family: str):
    spec = {"family": family, "task": "multilabel", "training": TRAINING}
    evaluation = {"folds": 2, "slices": ["kind"]} if family == "linear" else {}
    job = make_job(tagged, **spec, evaluation=evaluation, compress={"max_metric_drop": 0.2})
    result = train.run(job)
    assert result["main_metric"] == "f1_micro"
    assert result["metrics"]["f1_micro"] > 0.9
    signature = Signature.from_json(json.loads((job.output / "signature.json").read_text()))
    assert (signature.classes, signature.separator) == (("cheap", "large", "once", "retro"), "|")
    split = pl.read_parquet(job.output / "split.parquet").filter(pl.col("part") == "test")
    rows = tagged[split["__row_id"].to_numpy()]
    inputs = {
        "numeric": rows.select(pl.selectors.float()).to_numpy().astype(np.float32),
        "categorical": rows.select("kind").to_numpy().astype(object),
    }
    probabilities = predict(open_session((job.output / "model.onnx").read_bytes(), 1), inputs)
    served = json.loads(prediction_encoder(signature)((probabilities,)))
    true = [{part.strip() for part in cell.split("|")} - {""} for cell in rows["target"]]
    right = [set(row["labels"]) == labels for row, labels in zip(served, true, strict=True)]
    assert np.mean(right) == pytest.approx(result["metrics"]["subset_accuracy"])
    jsonschema.validate(served[0], prediction_schema(signature))
    card = json.loads((job.output / "card.json").read_text())
    assert card["data"]["positive_class"] is None
    assert any("'once'" in warning for warning in card["warnings"]) or 0 in split["__row_id"].to_list()
    assert {"roc", "pr", "calibration"} == set(json.loads((job.output / "evaluation.json").read_text())["curves"])
    assert card["intervals"]["metrics"]["label_ranking_ap"][1] <= 1
    if family == "linear":
        assert len(card["cross_validation"]["metrics"]["hamming_loss"]["values"]) == 2
        assert card["slices"]["kind"][0]["metrics"]["f1_macro"] > 0.5
    assert all(variant["metrics"]["f1_micro"] > 0.8 for variant in result["variants"])


@pytest.mark.parametrize("family", ["gbdt", "xgboost", "extra_trees"])
def test_trees(make_job: MakeJob, tagged: pl.DataFrame, family: str):
    """A model for each label in one graph, which the parity gate has proven; what all rows have is always told."""
    frame = tagged[1:].with_columns(target="all | " + pl.col("target"))
    job = make_job(frame, family=family, task="multilabel", params={"n_estimators": 20})
    result = train.run(job)
    assert result["metrics"]["subset_accuracy"] > 0.75  # an eighth by chance
    card = json.loads((job.output / "card.json").read_text())
    assert set(card["fit"]["labels"]) == {"cheap", "large", "retro"}
    assert card["parity"]["label_flips"] == 0
    raw = (job.output / "model.onnx").read_bytes()
    assert complexity(raw)["trees"] <= 60
    rows = {"numeric": np.zeros((1, 4), np.float32), "categorical": np.array([["old"]], object)}
    answers = dict(zip(result["signature"]["classes"], predict(open_session(raw, 1), rows)[0], strict=True))
    assert answers["all"] == 1
    assert answers["retro"] > 0.7


def test_the_ensemble(make_job: MakeJob, tagged: pl.DataFrame, monkeypatch: pytest.MonkeyPatch):
    """Of models that each tell all labels; the parity gate has proven the one graph."""
    trees = Candidate("gbdt", "gbdt", {"n_estimators": 60, "learning_rate": 0.2}, relearns=4)
    bayes = Candidate("naive_bayes", "naive_bayes", relearns=1)
    monkeypatch.setitem(PLANS, "tabular", ((trees, bayes), PLANS["tabular"][1]))
    params = {"folds": 2, "families": ["naive_bayes", "gbdt"]}
    job = make_job(tagged[1:], family="auto", task="multilabel", params=params, metrics=["label_ranking_ap"])
    result = train.run(job)
    assert result["metrics"]["label_ranking_ap"] > 0.97
    assert result["metrics"]["subset_accuracy"] > 0.75
    fit = json.loads((job.output / "card.json").read_text())["fit"]
    assert {line["name"] for line in fit["tried"]} == set(params["families"])
    # Trees stop early for each label by itself, so how many all rows take is not known.
    again = {line["name"]: 1 if line["weight"] and line["name"] != "gbdt" else 2 for line in fit["tried"]}
    assert {line["name"]: line["models"] for line in fit["tried"]} == again
    assert next(line["weight"] for line in fit["tried"] if line["name"] == "gbdt")
    assert all(line["label_ranking_ap"] > 0.9 for line in fit["tried"])
    assert set(fit["combinations"]) == {"best model", "weighted mean"}
    assert fit["temperature"] in {None, 1.0}


def test_a_forest_for_each_label_is_resumed_to_the_same_graph(make_job: MakeJob, tagged: pl.DataFrame):
    spec = {"family": "random_forest", "task": "multilabel", "params": {"n_estimators": 12}}
    whole = make_job(tagged[1:], name="whole", **spec)
    train.run(whole)
    stopped = make_job(tagged[1:], name="stopped", **spec)
    emit = type(stopped).progress

    class Stopping(type(stopped)):  # type: ignore[misc]  # made from the fixture's class
        def progress(self, fraction: float, told: str, eta_s: float | None = None) -> None:
            emit(self, fraction, told, eta_s)
            if told.startswith("large: grown"):
                self.stop.set()

    stopped.__class__ = Stopping
    with pytest.raises(Stopped):
        train.run(stopped)
    again = make_job(tagged[1:], name="again", **spec)
    shutil.copytree(stopped.checkpoint, again.checkpoint)
    train.run(again)
    steps = [event["step"] for event in again.seen if event["event"] == "progress"]
    assert not [step for step in steps if step.startswith("cheap")]  # it was whole
    assert any(event.get("message", "").startswith("large: resumed from tree") for event in again.seen)
    assert (again.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_texts(make_job: MakeJob):
    rng = np.random.default_rng(1)
    words = {"food": ["soup", "bread", "cake"], "staff": ["waiter", "cook"], "price": ["cheap", "dear", "bill"]}
    cells, texts = [], []
    for _ in range(400):
        labels = [name for name in words if rng.random() < 0.4]
        texts.append(" ".join(["we", *(rng.choice(words[name]) for name in labels), "went"]))
        cells.append(";".join(labels) or ";")
    frame = pl.DataFrame({"review": texts, "target": cells})
    spec = {"family": "text_linear", "task": "multilabel", "separator": ";", "features": {"types": {"review": "text"}}}
    job = make_job(frame, **spec)
    assert train.run(job)["metrics"]["subset_accuracy"] > 0.95


def test_pictures(make_job: MakeJob, digits: pl.DataFrame):
    numbers = digits["label"].cast(pl.Int64).to_numpy()
    labels = ["|".join(["odd"] * (n % 2) + ["large"] * (n > 4)) or "|" for n in numbers.tolist()]
    frame = digits.with_columns(pl.Series("label", labels))[::4]
    training = {"epochs": 3, "batch_size": 32, "optimizer": {"lr": 0.01}}
    job = make_job(frame, data="image", family="cnn", task="multilabel", target="label", training=training)
    result = train.run(job)
    assert result["signature"]["classes"] == ("large", "odd")
    assert result["metrics"]["subset_accuracy"] > 0.6  # by chance a quarter
    later = make_job(frame, data="image", name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1}
    job.output.rename(later.input / "model")
    assert compress.run(later)["metrics"] == pytest.approx(result["metrics"])


def test_metrics_by_scikit_learn():
    rng = np.random.default_rng(0)
    y, p = (rng.random((200, 5)) < 0.3).astype(np.float32), np.round(rng.random((200, 5)), 1)
    y[:3] = 0
    y[3] = 1
    told, found = p >= 0.5, evaluate("multilabel", y, p)
    assert found["f1_micro"] == pytest.approx(sk.f1_score(y, told, average="micro"))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(y, told, average="macro"))
    assert found["subset_accuracy"] == pytest.approx(sk.accuracy_score(y, told))
    assert found["hamming_loss"] == pytest.approx(sk.hamming_loss(y, told))
    assert found["label_ranking_ap"] == pytest.approx(sk.label_ranking_average_precision_score(y, p))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, p, average="macro"))
    assert found["pr_auc"] == pytest.approx(sk.average_precision_score(y, p, average="macro"))
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    assert found["log_loss"] == pytest.approx(np.mean([sk.log_loss(y[:, k], clipped[:, k]) for k in range(5)]))
    for name, value in found.items():
        assert evaluate("multilabel", y, p, names={name}) == {name: value}
        assert scorer(name, "multilabel", y)(y, p) == (-value if name in LOWER_IS_BETTER else value)
    drawn = rng.integers(0, 200, 200)
    weights = np.bincount(drawn, minlength=200)[None].astype(float)
    again = weighted("multilabel", y, p, Rule(), weights)
    assert {k: v[0] for k, v in again.items()} == pytest.approx(evaluate("multilabel", y[drawn], p[drawn]))
    assert evaluate("multilabel", y, baseline("multilabel", y, 200, 5))["roc_auc"] == 0.5


def test_too_many_labels_for_a_model_each(make_job: MakeJob):
    frame = pl.DataFrame({"x": [float(i) for i in range(404)], "target": [f"label {i % 101}" for i in range(404)]})
    with pytest.raises(InvalidSpec, match="at most 100; there are 101"):
        train.run(make_job(frame, family="gbdt", task="multilabel"))


def test_labels_that_a_model_does_not_know_are_told_apart():
    found = read_target(pl.Series("t", ["a|b", "b", "a|z", "|"]), "multilabel", ("a", "b"), "|", to_learn=False)
    assert found.y.tolist() == [[1, 1], [0, 1], [-1, -1], [0, 0]]
    with pytest.raises(InvalidData, match="one class only"):
        read_target(pl.Series("t", ["a", "a|"]), "multilabel", (), "|")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"training": {"class_weight": "balanced"}}, ("training", "class_weight")),
        ({"family": "mlp", "training": {"label_smoothing": 0.1}}, ("training", "label_smoothing")),
        ({"evaluation": {"threshold": 0.3}}, ("evaluation", "threshold")),
        ({"evaluation": {"intervals": 0.9}}, ("evaluation", "intervals")),
        ({"ordinal": ["a", "b", "c"]}, ("ordinal",)),
        ({"metrics": ["accuracy"]}, ("metrics",)),
        ({"task": "classification", "separator": ","}, ("separator",)),
        ({"split": {"method": "stratified"}}, ("split", "method")),
        ({"family": "cnn", "training": {"augment": {"mixup": 0.2}}}, ("training", "augment", "mixup")),
    ],
)
def test_what_is_not_for_several_labels_is_named(
    make_job: MakeJob, tagged: pl.DataFrame, change: dict[str, Any], where: tuple[str | int, ...]
):
    with pytest.raises(InvalidSpec) as caught:
        train.run(make_job(tagged, **{"family": "linear", "task": "multilabel"} | change))
    assert caught.value.errors[0].loc == where
