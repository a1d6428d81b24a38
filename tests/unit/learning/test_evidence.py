"""What the likelihood of training rows says of a model, against scikit-learn and the formulas in full."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp
from scipy.special import expit
from scipy.stats import multivariate_normal
from sklearn.linear_model import BayesianRidge, Lasso, Ridge
from sklearn.naive_bayes import CategoricalNB, GaussianNB

from workers.families.evidence import of_classes, of_values
from workers.jobs import train

MakeJob = Callable[..., Any]


def trained(job: Any, frame: pl.DataFrame) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The card of a training, its standardised training rows, and their targets."""
    train.run(job)
    card = json.loads((job.output / "card.json").read_text())
    assert json.loads((job.output / "evaluation.json").read_text())["evidence"] == card["evidence"]
    split = pl.read_parquet(job.output / "split.parquet").filter(pl.col("part") == "train")
    rows = frame[split["__row_id"].to_numpy()]
    x = rows.drop("target").to_numpy().astype(np.float32).astype(float)
    return card, (x - x.mean(axis=0)) / x.std(axis=0), rows["target"].to_numpy()


def test_ridge(make_job: MakeJob, diabetes: pl.DataFrame):
    job = make_job(diabetes, task="regression", family="linear", params={"regularization": 7.0})
    card, x, y = trained(job, diabetes)
    told, centred, n = card["evidence"], y - y.mean(), len(y)
    hat = x @ np.linalg.solve(x.T @ x + 7 * np.eye(10), x.T)
    residuals = centred - hat @ centred
    likelihood = -n / 2 * (np.log(2 * np.pi * residuals @ residuals / n) + 1)
    assert (told["likelihood"], told["rows"]) == ("conditional", n)
    assert told["log_likelihood"] == pytest.approx(likelihood, abs=1e-3)
    assert told["parameters"] == pytest.approx(np.trace(hat) + 2, rel=1e-4)  # the intercept and the variance
    assert told["bic"] == pytest.approx(np.log(n) * (np.trace(hat) + 2) - 2 * likelihood, abs=1e-2)
    assert told["aic"] == pytest.approx(2 * (np.trace(hat) + 2) - 2 * likelihood, abs=1e-2)
    shape = np.eye(n) + x @ x.T / 7
    variance = centred @ np.linalg.solve(shape, centred) / n
    evidence = multivariate_normal.logpdf(centred, np.zeros(n), variance * shape)
    assert told["log_marginal_likelihood"] == pytest.approx(evidence, abs=1e-3)
    page = (job.output / "card.html").read_text()
    assert "log marginal likelihood" in page
    assert f"{told['bic']:.4g}" in page


def test_the_marginal_likelihood_is_that_of_bayesian_ridge(diabetes: pl.DataFrame):
    """At the strength that it finds, which is the best one."""
    x, y = diabetes.drop("target").to_numpy(), diabetes["target"].to_numpy()
    x = x / x.std(axis=0)
    flat = {"alpha_1": 0, "alpha_2": 0, "lambda_1": 0, "lambda_2": 0}
    theirs = BayesianRidge(tol=1e-9, max_iter=1000, compute_score=True, **flat).fit(x, y)
    best = theirs.lambda_ / theirs.alpha_
    found = {}
    for strength in (best / 2, best, best * 2):
        ridge = Ridge(alpha=strength).fit(x, y)
        told = of_values(sp.csr_matrix(x), y - ridge.predict(x), ridge.coef_, strength, 0.0)
        found[strength] = told.log_marginal_likelihood
    assert found[best] == pytest.approx(theirs.scores_[-1], abs=1e-6)
    assert max(found.values()) == found[best]


def test_columns_that_the_lasso_drops_are_no_parameters(diabetes: pl.DataFrame):
    x, y = diabetes.drop("target").to_numpy(), diabetes["target"].to_numpy()
    x = x / x.std(axis=0)
    lasso = Lasso(alpha=8.0).fit(x, y)
    told = of_values(sp.csr_matrix(x), y - lasso.predict(x), lasso.coef_, 8.0 * len(y), 1.0)
    assert 0 < np.count_nonzero(lasso.coef_) < 10
    assert told.parameters == pytest.approx(np.count_nonzero(lasso.coef_) + 2)
    assert told.log_marginal_likelihood is None


def test_classes(make_job: MakeJob, cancer: pl.DataFrame):
    card, x, y = trained(make_job(cancer, family="linear", params={"regularization": 3.0}), cancer)
    told = card["evidence"]
    assert told["log_likelihood"] == pytest.approx(-card["metrics"]["train"]["log_loss"] * len(y), rel=1e-4)
    assert 1 < told["parameters"] < 31
    assert told["log_marginal_likelihood"] is None
    rng = np.random.default_rng(0)
    x, slopes, y = x[:, :4], rng.normal(size=(4, 1)), (y == "benign").astype(np.int64)
    second = expit(x @ slopes + 0.3)[:, 0]
    both = np.stack([1 - second, second], axis=1)
    design = np.column_stack([x, np.ones(len(x))])
    information = design.T @ (design * (second * (1 - second))[:, None])
    penalty = np.diag([3.0] * 4 + [0.0])
    binary = of_classes(sp.csr_matrix(x), both, y, slopes, 3.0, 0.0)
    assert binary.parameters == pytest.approx(np.trace(np.linalg.solve(information + penalty, information)))
    # The same model with a column of weights for each class, whose penalty is twice as strong for what they add up to.
    several = of_classes(sp.csr_matrix(x), both, y, np.hstack([-slopes / 2, slopes / 2]), 6.0, 0.0)
    assert several.parameters == pytest.approx(binary.parameters)
    assert several.log_likelihood == binary.log_likelihood


def test_naive_bayes(make_job: MakeJob, cancer: pl.DataFrame, mixed: pl.DataFrame):
    card, x, y = trained(make_job(cancer, family="naive_bayes", name="numbers"), cancer)
    theirs = GaussianNB(var_smoothing=1e-3).fit(x, y)
    joint = theirs.predict_joint_log_proba(x)[np.arange(len(y)), (y == theirs.classes_[1]).astype(int)]
    assert card["evidence"]["likelihood"] == "joint"
    assert card["evidence"]["log_likelihood"] == pytest.approx(joint.sum(), rel=1e-4)
    assert card["evidence"]["parameters"] == 1 + 2 * 30 * 2
    frame = mixed.select("city", "plan", "target")
    job = make_job(frame, name="categories", family="naive_bayes")
    train.run(job)
    split = pl.read_parquet(job.output / "split.parquet").filter(pl.col("part") == "train")
    rows = frame[split["__row_id"].to_numpy()].with_columns(pl.col("city").fill_null("")).to_numpy()
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in rows[:, :2].T], axis=1)
    counted = CategoricalNB(alpha=1.0, min_categories=[6, 3]).fit(codes, rows[:, 2])  # one more for unseen ones
    at = (rows[:, 2] == "yes").astype(int)
    told = json.loads((job.output / "card.json").read_text())["evidence"]
    joint = counted.predict_joint_log_proba(codes)[np.arange(len(at)), at]
    assert told["log_likelihood"] == pytest.approx(joint.sum())
    assert told["parameters"] == 1 + 2 * (4 + 1)
    weighted = make_job(frame, name="weighted", family="naive_bayes", training={"class_weight": "balanced"})
    train.run(weighted)  # which is no likelihood of rows
    assert json.loads((weighted.output / "card.json").read_text())["evidence"] is None


def test_training_targets_that_are_all_the_same_have_none(make_job: MakeJob, diabetes: pl.DataFrame):
    row = pl.int_range(pl.len())
    part = pl.when(row < 60).then(pl.lit("test")).when(row < 120).then(pl.lit("validation")).otherwise(pl.lit("train"))
    target = pl.when(row == 0).then(2.0).otherwise(1.0)
    same = diabetes.with_columns(part.alias("part"), target.alias("target"))
    job = make_job(same, task="regression", family="linear", split={"column": "part"})
    train.run(job)
    assert json.loads((job.output / "card.json").read_text())["evidence"] is None
