"""Weights of classes, thresholds, intervals: what is asked of targets beside the most usual."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import polars as pl
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn import metrics as sk

from app.core.errors import InvalidData, InvalidSpec
from app.core.instance_schema import prediction_schema
from app.core.signature import Signature, Threshold
from app.serving.predictions import prediction_encoder
from app.specs.jobs import TrainSpec
from workers.data.weights import class_weights
from workers.evaluation.conformal import offsets, rows_needed
from workers.evaluation.intervals import weighted
from workers.evaluation.metrics import evaluate
from workers.evaluation.threshold import _VALUES, best_threshold
from workers.export.runtime import open_session, predict
from workers.families.ordinal import solve
from workers.jobs import train
from workers.jobs.spread import halves
from workers.learning import Array, Rule
from workers.training.losses import ClassLoss

MakeJob = Callable[..., Any]
TRAINING = {"epochs": 4, "batch_size": 64, "optimizer": {"lr": 0.01}}


@pytest.fixture(scope="module")
def rare() -> pl.DataFrame:
    """1,500 rows, a twelfth of which are `ill`."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(1500, 4))
    ill = rng.random(1500) < 1 / (1 + np.exp(-(2.5 * x[:, 0] + 1.5 * x[:, 1] - 5)))
    columns = {f"x{i}": x[:, i] for i in range(4)}
    return pl.DataFrame({**columns, "kind": rng.choice(["a", "b"], 1500), "target": np.where(ill, "ill", "well")})


def _answers(job: Any, frame: pl.DataFrame) -> tuple[Array, Array]:
    """Labels and probabilities of the test rows, as a plain session gives them."""
    split = pl.read_parquet(job.output / "split.parquet").filter(pl.col("part") == "test")
    rows = frame[split["__row_id"].to_numpy()]
    inputs: dict[str, Array] = {"numeric": rows.select(pl.selectors.numeric().exclude("target")).to_numpy()}
    inputs["numeric"] = inputs["numeric"].astype(np.float32)
    if "kind" in rows.columns:
        inputs["categorical"] = rows.select("kind").to_numpy().astype(object)
    return rows["target"].to_numpy(), predict(open_session((job.output / "model.onnx").read_bytes(), 1), inputs)


@pytest.mark.parametrize(
    "family",
    # extra_trees and ft_transformer learn by the same code as random_forest and mlp
    ["linear", "gbdt", "xgboost", "random_forest", "naive_bayes", "mlp"],
)
def test_balanced_classes_count_alike(make_job: MakeJob, rare: pl.DataFrame, family: str):
    params = {"n_estimators": 50} if family == "random_forest" else {}
    spec = {"family": family, "params": params, "training": {**TRAINING, "class_weight": "balanced"}}
    job = make_job(rare, **spec)
    assert train.run(job)["metrics"]["roc_auc"] > 0.8
    labels, probabilities = _answers(job, rare)
    share = (labels == "ill").mean()
    # The rare class is taken to be as frequent as the other: without weights the mean is its share.
    assert share < 0.12
    assert probabilities[:, 0].mean() > share + 0.07
    assert evaluate("classification", (labels == "well").astype(int), probabilities)["balanced_accuracy"] > 0.7


def test_networks_of_pictures_weigh_classes(make_job: MakeJob, digits: pl.DataFrame):
    training = {"epochs": 2, "class_weight": {"3": 50.0}, "label_smoothing": 0.05}
    job = make_job(digits[::6], data="image", family="cnn", target="label", training=training)
    train.run(job)
    confusion = np.asarray(json.loads((job.output / "evaluation.json").read_text())["curves"]["confusion"]["counts"])
    assert confusion[:, 3].sum() > 2 * confusion[3].sum()  # told more than twice as often as it is there


def test_a_weighted_loss_is_a_mean_over_rows():
    torch.manual_seed(0)
    logits, y, weights = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 1, 2]), np.asarray([0.5, 1.0, 3.0])
    loss = ClassLoss(weights)
    rows = torch.nn.functional.cross_entropy(logits, y, reduction="none") * torch.tensor(weights).float()[y]
    assert loss(logits, y) == pytest.approx(float(rows.mean()), rel=1e-6)
    halves = (4 * loss(logits[:4], y[:4]) + 3 * loss(logits[4:], y[4:])) / 7
    assert halves == pytest.approx(float(loss(logits, y)), rel=1e-6)
    shares = torch.nn.functional.one_hot(y, 3).float()  # what mixup makes of labels
    assert loss(logits, shares) == pytest.approx(float(loss(logits, y)), rel=1e-6)
    assert float(loss.smoothed(0.2)(logits, y)) != pytest.approx(float(loss(logits, y)), rel=1e-3)


def test_texts_weigh_classes(make_job: MakeJob):
    rng = np.random.default_rng(0)
    words = np.asarray(["fine", "good", "bad", "late", "slow", "room", "day", "staff"])
    bad = rng.random(800) < 0.1
    noisy = np.where(rng.random(800) < 0.25, ~bad, bad)
    frame = pl.DataFrame({
        "review": [" ".join(rng.choice(words[2:] if b else words[[0, 1, 5, 6, 7]], 4)) for b in noisy],
        "target": np.where(bad, "complaint", "other"),
    })  # fmt: skip
    found = {}
    for weight in (None, "balanced"):
        training = {"class_weight": weight}
        features = {"types": {"review": "text"}}
        job = make_job(frame, name=f"{weight}", family="text_linear", features=features, training=training)
        found[weight] = train.run(job)["metrics"]
    assert found["balanced"]["recall"] > found[None]["recall"] + 0.2


def test_weights_are_one_on_average():
    y = np.asarray([0] * 90 + [1] * 10)
    assert class_weights("balanced", ["a", "b"], y) == pytest.approx([100 / 180, 5.0])
    assert class_weights({"b": 9.0}, ["a", "b"], y) == pytest.approx([100 / 180, 5.0])
    assert class_weights("balanced", ["a", "b", "never"], y) == pytest.approx([100 / 180, 5.0, 0.0])
    assert class_weights(None, ["a", "b"], y) is None


@pytest.mark.parametrize("metric", list(_VALUES))
def test_no_other_threshold_is_better(metric: Any):
    scorers = {
        "f1": lambda y, p: sk.f1_score(y, p, zero_division=0.0), "accuracy": sk.accuracy_score,
        "f1_macro": lambda y, p: sk.f1_score(y, p, average="macro", zero_division=0.0),
        "balanced_accuracy": sk.balanced_accuracy_score, "mcc": sk.matthews_corrcoef, "kappa": sk.cohen_kappa_score,
    }  # fmt: skip
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = rng.random(60) < 0.3
        scores = np.round(np.clip(rng.normal(0.2 + 0.2 * y, 0.15), 0.01, 0.99), 2).astype(np.float32)
        threshold, reached, usual = best_threshold(y, scores, metric)
        assert reached == pytest.approx(scorers[metric](y, scores >= threshold))
        assert usual == pytest.approx(scorers[metric](y, scores >= 0.5))
        others = [scorers[metric](y, scores >= other) for other in np.unique(scores)]
        assert reached == pytest.approx(max([*others, usual]))


@pytest.mark.parametrize("family", ["gbdt", "auto"])
def test_a_threshold_is_tuned_stored_and_told(make_job: MakeJob, rare: pl.DataFrame, family: str):
    params = {"families": ["linear"], "folds": 2, "time_limit_s": 60} if family == "auto" else {}
    evaluation = {"threshold": {"maximize": "f1"}, "folds": 2 if family == "gbdt" else None}
    spec = {"family": family, "params": params, "evaluation": evaluation}
    job = make_job(rare, compress={"max_metric_drop": 0.2}, **spec)
    result = train.run(job)
    signature = Signature.from_json(result["signature"])
    card = json.loads((job.output / "card.json").read_text())
    told = card["threshold"]
    assert signature.threshold == Threshold("ill", told["probability"])
    assert told["probability"] < 0.45  # the likelier class is `well` nearly everywhere
    tuned = told["tuned"]
    assert tuned["reached"] >= tuned["at_half"] + 0.02
    assert (tuned["maximizes"], tuned["rows"]) == ("f1", 1200 if family == "auto" else 150)
    labels, probabilities = _answers(job, rare)
    y = (labels == "well").astype(int)
    expected = sk.f1_score(labels, np.where(probabilities[:, 0] >= told["probability"], "ill", "well"), pos_label="ill")
    assert result["metrics"]["f1"] == pytest.approx(expected)
    assert result["metrics"]["recall"] > evaluate("classification", y, probabilities, rule=Rule(0))["recall"]
    assert result["metrics"]["ece"] == pytest.approx(evaluate("classification", y, probabilities)["ece"])
    served = json.loads(prediction_encoder(signature)((probabilities,)))
    assert sk.f1_score(labels, [row["label"] for row in served], pos_label="ill") == pytest.approx(expected)
    evaluation = json.loads((job.output / "evaluation.json").read_text())
    counts = evaluation["curves"]["confusion"]["counts"]
    assert 2 * counts[0][0] / (2 * counts[0][0] + counts[0][1] + counts[1][0]) == pytest.approx(expected)
    low, high = card["intervals"]["metrics"]["f1"]
    assert low <= expected <= high
    sketch = json.loads((job.output / "sketch.json").read_text())["outputs"]["label"]["counts"]
    assert sketch["ill"] > 60  # of the 1,050 training rows; by the likelier class it is half as many
    assert f"<b>{told['probability']:.4g}</b>" in (job.output / "card.html").read_text()


def test_a_threshold_may_be_a_number_and_old_signatures_have_none(make_job: MakeJob, rare: pl.DataFrame):
    job = make_job(rare, family="linear", evaluation={"threshold": 0.15})
    result = train.run(job)
    labels, probabilities = _answers(job, rare)
    expected = sk.recall_score(labels, np.where(probabilities[:, 0] >= 0.15, "ill", "well"), pos_label="ill")
    assert result["metrics"]["recall"] == pytest.approx(expected)
    raw = result["signature"]
    assert raw["threshold"] == {"label": "ill", "probability": 0.15}
    del raw["threshold"]
    assert Signature.from_json(raw).threshold is None


@pytest.mark.parametrize(
    ("change", "error", "where"),
    [
        ({"training": {"class_weight": {"sick": 3.0}}}, InvalidSpec, ("training", "class_weight", "sick")),
        ({"training": {"class_weight": "balanced"}, "family": "auto"}, InvalidSpec, ("training", "class_weight")),
        (
            {"training": {"class_weight": "balanced"}, "task": "regression", "target": "x0"},
            InvalidSpec,
            ("training", "class_weight"),
        ),
        (
            {"evaluation": {"threshold": 0.4}, "task": "regression", "target": "x0"},
            InvalidSpec,
            ("evaluation", "threshold"),
        ),
        ({"evaluation": {"intervals": 0.9}}, InvalidSpec, ("evaluation", "intervals")),
        (
            {"evaluation": {"intervals": 0.99}, "task": "regression", "target": "x1"},
            InvalidSpec,
            ("evaluation", "intervals"),
        ),
        ({"evaluation": {"threshold": 0.4}, "target": "x0"}, InvalidSpec, ("evaluation", "threshold")),
        (
            {"evaluation": {"threshold": {"maximize": "f1"}}, "split": {"column": "part"}},
            InvalidSpec,
            ("evaluation", "threshold"),
        ),
    ],
)
def test_what_cannot_be_is_named(
    make_job: MakeJob, rare: pl.DataFrame, change: dict[str, Any], error: type[Exception], where: tuple[str | int, ...]
):
    well = (rare["target"] == "well").to_numpy()
    part = np.where(
        np.arange(1500) % 5 == 0, "test", np.where(well & (np.arange(1500) % 5 == 1), "validation", "train")
    )
    frame = rare.with_columns(pl.Series("part", part), pl.col("x0").round(0))
    with pytest.raises(error) as caught:
        train.run(make_job(frame, **{"family": "linear"} | change))
    assert isinstance(caught.value, InvalidSpec | InvalidData)
    assert caught.value.errors[0].loc == where


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"evaluation": {"threshold": 1.5}}, ("evaluation", "threshold")),
        ({"evaluation": {"threshold": {"maximize": "rmse"}}}, ("evaluation", "threshold", "maximize")),
        ({"training": {"class_weight": "even"}}, ("training", "class_weight")),
        ({"training": {"class_weight": {"a": 0}}}, ("training", "class_weight", "a")),
    ],
)
def test_one_error_is_at_the_field(change: dict[str, Any], where: tuple[str, ...]):
    from pydantic import ValidationError  # noqa: PLC0415 - for this alone

    from app.specs.base import field_error  # noqa: PLC0415 - as above

    spec = {"kind": "train", "model": "m", "dataset": "d@1", "task": "classification", "target": "t", "family": "gbdt"}
    with pytest.raises(ValidationError) as caught:
        TrainSpec.model_validate(spec | change)
    assert [field_error(found).loc for found in caught.value.errors()] == [where]


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_offsets_keep_their_promise_for_few_rows(coverage: float):
    rng, count = np.random.default_rng(3), rows_needed(coverage) + 2
    held = []
    for _ in range(2000):
        low, high = offsets(rng.exponential(size=count), coverage)  # skewed, so that both ends matter
        held.append(np.exp(-low) - np.exp(-high))
    assert coverage - 0.01 <= np.mean(held) <= coverage + 2 / (count + 1) + 0.01
    with pytest.raises(IndexError):
        offsets(rng.exponential(size=rows_needed(coverage) - 1), coverage)


def test_metrics_of_intervals_by_formulas_of_their_own():
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    value = y + rng.normal(size=300)
    answers, rule = np.stack([value, value - 1.2, value + 1.5], axis=1), Rule(coverage=0.8)
    found = evaluate("regression", y, answers, rule=rule)
    assert found["coverage"] == np.mean((answers[:, 1] <= y) & (y <= answers[:, 2]))
    assert found["interval_width"] == pytest.approx(2.7)
    losses = [sk.mean_pinball_loss(y, answers[:, at], alpha=alpha) for at, alpha in ((1, 0.1), (2, 0.9))]
    assert found["pinball"] == pytest.approx(np.mean(losses))
    assert found["rmse"] == evaluate("regression", y, value)["rmse"]
    drawn = rng.integers(0, 300, 300)
    weights = np.bincount(drawn, minlength=300)[None].astype(float)
    again = weighted("regression", y, answers, rule, weights)
    expected = evaluate("regression", y[drawn], answers[drawn], rule=rule)
    assert {name: values[0] for name, values in again.items()} == pytest.approx(expected)


@pytest.mark.parametrize("family", ["linear", "gbdt"])
def test_intervals_of_real_data_hold_what_they_promise(make_job: MakeJob, shared_data: Path, family: str):
    frame = pl.read_csv(shared_data / "tabular" / "california_housing.csv")
    params = {"n_estimators": 60, "learning_rate": 0.2} if family == "gbdt" else {}
    spec = {"family": family, "params": params, "split": {"test": 0.4, "validation": 0.1}}
    spec |= {"task": "regression", "target": "median_house_value", "evaluation": {"intervals": 0.9}}
    job = make_job(frame, **spec, compress={"max_metric_drop": 0.2})
    result = train.run(job)
    calibration = json.loads((job.output / "card.json").read_text())["prediction_intervals"]["rows"]
    assert calibration == 1032  # half of the validation rows
    doubt = 3 * (0.09 * (1 / 1032 + 1 / 8256)) ** 0.5
    assert result["metrics"]["coverage"] == pytest.approx(0.9, abs=doubt)
    assert result["metrics"]["interval_width"] < 3.3 * result["metrics"]["rmse"] * 1.2
    assert [t["name"] for t in result["signature"]["outputs"]] == ["value", "lower", "upper"]
    for variant in result["variants"]:
        assert variant["metrics"]["coverage"] == pytest.approx(0.9, abs=doubt + 0.02)


def test_intervals_by_row_hold_in_each_part_of_real_data(make_job: MakeJob, shared_data: Path):
    """Where houses are dear, one width for all holds 0.84 of the values and not 0.9."""
    frame = pl.read_csv(shared_data / "tabular" / "california_housing.csv")
    params, found = {"n_estimators": 60, "learning_rate": 0.2}, {}
    spec = {"family": "gbdt", "params": params, "split": {"test": 0.4, "validation": 0.1}, "task": "regression"}
    for width in ("same", "by_row"):
        asked = {"intervals": 0.9, "interval_width": width, "slices": ["median_income"]}
        job = make_job(frame, name=width, target="median_house_value", evaluation=asked, **spec)
        metrics = train.run(job)["metrics"]
        card = json.loads((job.output / "card.json").read_text())
        far = [abs(one["metrics"]["coverage"] - 0.9) for one in card["slices"]["median_income"]]
        found[width] = metrics, max(far), card["prediction_intervals"]
    (same, far_of_same, _), (by_row, far, told) = found["same"], found["by_row"]
    assert far_of_same > 0.05 > far
    assert by_row["pinball"] < 0.95 * same["pinball"]
    assert by_row["rmse"] == same["rmse"]
    assert by_row["coverage"] == pytest.approx(0.9, abs=3 * (0.09 * (1 / 1032 + 1 / 8256)) ** 0.5)
    assert (told["rows"], told["widths_by"]) == (1032, {"family": "gbdt", "rows": 1032})
    assert told["width_quantiles"][2] > 2 * told["width_quantiles"][0]


def test_rows_that_teach_widths_do_not_calibrate(make_job: MakeJob, diabetes: pl.DataFrame):
    asked = {"intervals": 0.8, "interval_width": "by_row", "folds": 3}
    job = make_job(diabetes, family="linear", task="regression", evaluation=asked)
    result = train.run(job)
    told = json.loads((job.output / "card.json").read_text())["prediction_intervals"]
    assert (told["rows"], told["widths_by"]["rows"]) == (177, 177)  # halves of what folds left out
    golden = json.loads((job.output / "golden.json").read_text())["outputs"]
    lower, upper = (np.asarray(golden[name]["data"]) for name in ("lower", "upper"))
    assert len(set(np.round(upper - lower, 3))) > 1
    assert 0.65 <= result["metrics"]["coverage"] <= 0.95
    fractions = [e["fraction"] for e in job.seen if e["event"] == "progress"]
    assert fractions == sorted(fractions)
    groups = np.repeat(np.arange(20), 5)
    prepared: Any = SimpleNamespace(closer=SimpleNamespace(groups=groups))
    half = halves(prepared, np.arange(100), 3)
    assert half.sum() == 50
    assert all(len(set(half[groups == group])) == 1 for group in range(20))


def test_along_time_the_validation_rows_alone_calibrate_auto(make_job: MakeJob, diabetes: pl.DataFrame):
    frame = diabetes.with_columns(pl.Series("day", np.arange(len(diabetes))))
    params = {"families": ["linear"], "folds": 2, "time_limit_s": 60}
    given: dict[str, Any] = {
        "family": "auto", "task": "regression", "params": params,
        "split": {"method": "time", "time": "day", "validation": 0.4},
    }  # fmt: skip
    job = make_job(frame, **given, evaluation={"intervals": 0.8, "interval_width": "by_row"})
    train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    told, rows = card["prediction_intervals"], card["split"]["rows"]["validation"]
    assert told["rows"] + told["widths_by"]["rows"] == rows
    given["split"]["validation"] = 0.2
    with pytest.raises(InvalidSpec, match=r"0\.99 takes 199 rows .* and there are 89"):
        train.run(make_job(frame, name="many", **given, evaluation={"intervals": 0.99}))


def test_widths_by_row_need_intervals_and_rows(make_job: MakeJob, diabetes: pl.DataFrame):
    for frame, asked, where in (
        (diabetes, {"interval_width": "by_row"}, "interval_width"),
        (diabetes.head(100), {"interval_width": "by_row", "intervals": 0.5}, "interval_width"),
        (diabetes.head(60), {"interval_width": "by_row", "intervals": 0.95, "folds": 2}, "intervals"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            train.run(make_job(frame, family="linear", task="regression", evaluation=asked))
        assert caught.value.errors[0].loc == ("evaluation", where)


def test_intervals_by_folds_survive_a_restart_and_are_served(make_job: MakeJob, diabetes: pl.DataFrame):
    spec = {"family": "linear", "task": "regression", "evaluation": {"intervals": 0.8, "folds": 4}}
    job = make_job(diabetes, **spec)
    first = train.run(job)
    assert train.run(job)["signature"] == first["signature"]
    assert any("resumed after 4 further fits" in event.get("message", "") for event in job.seen)
    card = json.loads((job.output / "card.json").read_text())
    told = card["prediction_intervals"]
    assert (told["rows"], told["of"]) == (354, "rows that folds left out")
    low, high = card["intervals"]["metrics"]["coverage"]
    assert low <= 0.8 <= high
    golden = json.loads((job.output / "golden.json").read_text())["outputs"]
    outputs = tuple(np.asarray(golden[name]["data"], np.float32) for name in ("value", "lower", "upper"))
    signature = Signature.from_json(first["signature"])
    served = json.loads(prediction_encoder(signature)(outputs))
    for row in served:
        jsonschema.validate(row, prediction_schema(signature))
        assert row["interval"] == pytest.approx([row["value"] + told["below"], row["value"] + told["above"]], rel=1e-5)
    raw = first["signature"]
    assert raw["coverage"] == 0.8
    del raw["coverage"]
    assert Signature.from_json(raw).coverage is None


def test_auto_finds_intervals_by_the_rows_that_its_models_left_out(make_job: MakeJob, diabetes: pl.DataFrame):
    params = {"families": ["linear"], "folds": 3, "time_limit_s": 60}
    job = make_job(diabetes, family="auto", params=params, task="regression", evaluation={"intervals": 0.9})
    result = train.run(job)
    told = json.loads((job.output / "card.json").read_text())["prediction_intervals"]
    assert (told["rows"], told["of"]) == (354, "rows that its models left out")
    assert 0.8 <= result["metrics"]["coverage"] <= 1.0


ORDER = ["poor", "fair", "good", "best"]


@pytest.fixture(scope="module")
def rated() -> pl.DataFrame:
    """400 rows of a score that thresholds cut into four ordered classes."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 5))
    score = x @ [1.5, -1.0, 0.5, 0.0, 0.0] + rng.logistic(size=400)
    labels = np.asarray(ORDER)[np.digitize(score, [-2.5, 0.0, 2.0])]
    return pl.DataFrame({**{f"x{i}": x[:, i] for i in range(5)}, "target": labels})


@pytest.mark.parametrize("family", ["linear", "gbdt", "auto"])
def test_ordered_classes_are_judged_by_their_order(make_job: MakeJob, rated: pl.DataFrame, family: str):
    params = {"families": ["linear"], "folds": 2, "time_limit_s": 60} if family == "auto" else {}
    params = {"n_estimators": 40} if family == "gbdt" else params
    spec = {"family": family, "params": params, "ordinal": ORDER, "metrics": ["quadratic_kappa"]}
    job = make_job(rated, **spec)
    result = train.run(job)
    found = result["metrics"]
    assert (result["main_metric"], result["signature"]["classes"]) == ("quadratic_kappa", tuple(ORDER))
    labels, probabilities = _answers(job, rated)
    y, told = np.asarray([ORDER.index(label) for label in labels]), probabilities.argmax(axis=1)
    assert found["quadratic_kappa"] == pytest.approx(sk.cohen_kappa_score(y, told, weights="quadratic"))
    assert found["rank_mae"] == pytest.approx(np.abs(y - told).mean())
    assert found["accuracy_within_one"] == pytest.approx((np.abs(y - told) < 2).mean())
    assert found["quadratic_kappa"] > 0.5
    assert (probabilities >= 0).all()
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_order_helps_where_rows_are_few(make_job: MakeJob, rated: pl.DataFrame):
    found = {}
    for order in (None, ORDER):
        job = make_job(
            rated, name=f"{bool(order)}", family="linear", ordinal=order, split={"test": 0.7, "validation": 0.05}
        )
        found[bool(order)] = train.run(job)["metrics"]["log_loss"]
    assert found[True] < found[False] - 0.02


def test_the_cumulative_model_finds_what_made_the_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    y = np.digitize(x @ [1.0, -2.0] + rng.logistic(size=4000), [-2.0, 0.0, 1.5])
    weights, cumulative, _ = solve(csr_matrix(x), y, 4, None, 1.0, 1000)
    assert weights[:, 0] == pytest.approx([1.0, -2.0], abs=0.12)
    assert cumulative.thresholds == pytest.approx([-2.0, 0.0, 1.5], abs=0.15)
    assert cumulative.probabilities(x @ weights).mean(axis=0) == pytest.approx(np.bincount(y) / 4000, abs=0.01)
    doubled, _, _ = solve(csr_matrix(x), y, 4, np.where(y == 3, 2.0, 1.0), 1.0, 1000)
    rows = np.concatenate([np.arange(4000), np.flatnonzero(y == 3)])
    repeated, _, _ = solve(csr_matrix(x[rows]), y[rows], 4, None, 1.0, 1000)
    assert doubled == pytest.approx(repeated, abs=1e-3)


def test_metrics_of_ordered_classes_are_resampled_alike():
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 4, 80), rng.random((80, 4))
    drawn, rule = rng.integers(0, 80, 80), Rule(ordinal=True)
    weights = np.bincount(drawn, minlength=80)[None].astype(float)
    found = weighted("classification", y, p, rule, weights)
    expected = evaluate("classification", y[drawn], p[drawn], rule=rule)
    for name in ("quadratic_kappa", "rank_mae", "accuracy_within_one"):
        assert found[name][0] == pytest.approx(expected[name])


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"ordinal": ["poor", "fair", "good"]}, ("ordinal",)),
        ({"ordinal": ["poor", "fair", "good", "best", "bset"]}, ("ordinal", 4)),
        ({"ordinal": [*ORDER, "poor"]}, ("ordinal",)),
        ({"ordinal": ORDER, "params": {"l1_ratio": 0.5}}, ("params", "l1_ratio")),
        ({"ordinal": ORDER, "task": "regression", "target": "x0"}, ("ordinal",)),
        ({"metrics": ["rank_mae"]}, ("metrics",)),
    ],
)
def test_an_order_that_does_not_fit_is_named(
    make_job: MakeJob, rated: pl.DataFrame, change: dict[str, Any], where: tuple[str | int, ...]
):
    with pytest.raises(InvalidSpec) as caught:
        train.run(make_job(rated, **{"family": "linear"} | change))
    assert caught.value.errors[0].loc == where
