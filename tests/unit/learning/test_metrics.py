"""Metrics by formulas of their own, and their intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.evaluation.curves import curves
from workers.evaluation.intervals import bootstrap, weighted
from workers.evaluation.metrics import evaluate
from workers.learning import Array, Rule


def answers_of(seed: int, rows: int, classes: int, *, ties: bool) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    raw = rng.random((rows, classes)) ** 2 + 0.01
    raw = np.round(raw, 1) + 0.1 if ties else raw
    return rng.integers(0, classes, rows), (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)


CASES = st.tuples(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 4), st.booleans())


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_classification_by_formulas_of_their_own(case: tuple[int, int, int, bool]):
    seed, rows, classes, ties = case
    y, p = answers_of(seed, rows, classes, ties=ties)
    found = evaluate("classification", y, p)
    assert all(np.isfinite(value) for value in found.values())
    matrix = np.zeros((classes, classes))
    for true, told in zip(y, p.argmax(axis=1), strict=True):
        matrix[true, told] += 1
    right, true, told = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    f1 = np.divide(2 * right, true + told, out=np.zeros(classes), where=true + told > 0)
    assert found["f1_micro"] == pytest.approx(found["accuracy"]) == pytest.approx(right.sum() / rows)
    assert found["f1_weighted"] == pytest.approx((f1 * true).sum() / rows)
    assert found["f1_macro"] == pytest.approx(f1[true > 0].mean())
    square = ((p.astype(float) - np.eye(classes)[y]) ** 2).sum(axis=1).mean()
    assert found["brier"] == pytest.approx(square / (2 if classes == 2 else 1), abs=1e-5)
    if len(set(y.tolist())) < 2:
        assert not {"roc_auc", "pr_auc", "mcc", "kappa"} & set(found)
        return
    chance = (true * told).sum() / rows**2
    if chance < 1:
        assert found["kappa"] == pytest.approx((right.sum() / rows - chance) / (1 - chance), abs=1e-9)
    one, other = np.eye(classes)[y], np.eye(classes)[p.argmax(axis=1)]
    covariances = [sum(np.cov(a[:, k], b[:, k], bias=True)[0, 1] for k in range(classes)) for a, b in
                   ((one, other), (one, one), (other, other))]  # fmt: skip
    if covariances[2] > 0:
        assert found["mcc"] == pytest.approx(covariances[0] / np.sqrt(covariances[1] * covariances[2]), abs=1e-9)


def test_calibration_error_of_fifteen_bins():
    p = np.asarray([[0.3, 0.7], [0.38, 0.62], [0.05, 0.95], [0.6, 0.4]])
    y = np.asarray([1, 0, 1, 0])
    by_hand = (abs(0.7 - 1) + abs(0.62 - 0) + abs(0.95 - 1) + abs(0.6 - 1)) / 4  # each in a bin of its own
    assert evaluate("classification", y, p)["ece"] == pytest.approx(by_hand, abs=1e-6)
    same_bin = np.asarray([[0.30, 0.70], [0.29, 0.71]])
    assert evaluate("classification", np.asarray([1, 0]), same_bin)["ece"] == pytest.approx(0.705 - 0.5, abs=1e-6)


def test_average_precision_is_of_the_positive_class():
    y, p = np.asarray([0, 0, 1, 1]), np.asarray([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5], [0.2, 0.8]])
    assert evaluate("classification", y, p, rule=Rule(1))["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)
    assert evaluate("classification", y, p, rule=Rule(0))["pr_auc"] == pytest.approx((1 + 2 / 3) / 2)


@settings(max_examples=25, deadline=None)
@given(CASES, st.integers(0, 1))
def test_a_weight_counts_a_row_as_often(case: tuple[int, int, int, bool], positive: int):
    """What is resampled by weights is what the metrics say of rows that are there several times."""
    seed, rows, classes, ties = case
    y, p = answers_of(seed, rows, classes, ties=ties)
    weights = np.random.default_rng(seed).integers(0, 3, (3, rows)).astype(float)
    weights[:, 0] += 1
    found = weighted("classification", y, p, Rule(positive), weights)
    for b, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(rows), counts)
        expected = evaluate("classification", y[drawn], p[drawn], rule=Rule(positive))
        assert {name for name, values in found.items() if np.isfinite(values[b])} == set(expected)
        for name, value in expected.items():
            assert found[name][b] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_a_weight_counts_a_value_as_often(seed: int, rows: int):
    rng = np.random.default_rng(seed)
    y, answers = rng.normal(5, 1, rows), rng.normal(5, 1, rows)
    weights = rng.integers(0, 3, (2, rows)).astype(float)
    weights[:, :2] += 1
    found = weighted("regression", y, answers, Rule(), weights)
    for b, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(rows), counts)
        expected = evaluate("regression", y[drawn], answers[drawn])
        assert {name: values[b] for name, values in found.items()} == pytest.approx(expected, rel=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), 0
    for _ in range(60):
        y = rng.integers(0, 2, 120)
        right = rng.random(120) < 0.8
        told = np.where(right, y, 1 - y)
        bounds = bootstrap("classification", y, np.eye(2)[told]).bounds["accuracy"]
        inside += bounds[0] <= 0.8 <= bounds[1]
    assert 50 <= inside < 60


def test_intervals_are_the_same_again_and_wider_by_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 20)
    y = rng.normal(0, 1, 600)
    answers = y + rng.normal(0, 1, 30)[groups]  # the rows of a group err together
    rows = bootstrap("regression", y, answers)
    assert rows == bootstrap("regression", y, answers)
    by_groups = bootstrap("regression", y, answers, groups=groups)
    assert (rows.by, by_groups.by, rows.resamples) == ("rows", "groups", 1000)
    assert by_groups.width("rmse") > 2 * rows.width("rmse")
    assert bootstrap("regression", y[:80], answers[:80], groups=groups[:80]).bounds == {}


def test_many_rows_are_resampled_less_often():
    y = np.random.default_rng(0).normal(size=40_000)
    found = bootstrap("regression", y, np.zeros(40_000))
    assert found.resamples == 500
    low, high = found.bounds["rmse"]
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(2 * 40_000), rel=0.15)  # of a standard deviation


def test_curves_end_where_they_have_to():
    y, p = answers_of(3, 500, 2, ties=False)
    found = curves("classification", y, p, Rule(), ("no", "yes"), points=50)
    (roc,), (pr,) = found["roc"], found["pr"]
    assert (roc["class"], roc["false_positive_rate"][0], roc["true_positive_rate"][-1]) == ("yes", 0.0, 1.0)
    assert len(roc["false_positive_rate"]) <= 50
    assert len(pr["recall"]) <= 50
    assert sum(map(sum, found["confusion"]["counts"])) == sum(found["calibration"]["rows"]) == 500
    assert found["gains"]["found"][-1] == found["gains"]["lift"][-1] == 1.0
    counts = np.asarray(found["confusion"]["counts"])
    assert counts[1, 0] == ((y == 1) & (p.argmax(axis=1) == 0)).sum()


def test_curves_of_one_class_and_of_very_many():
    one = curves("classification", np.zeros(5, int), np.full((5, 2), 0.5), Rule(), ("a", "b"))
    assert set(one) == {"confusion", "calibration"}
    y, p = answers_of(0, 400, 40, ties=False)
    many = curves("classification", y, p, Rule(), [f"c{i}" for i in range(40)])
    assert "counts" not in many["confusion"]
    assert len(many["roc"]) == 10
    values = curves("regression", np.arange(300.0), np.arange(300.0) + 1, Rule(), (), points=100)["residuals"]
    assert set(values["residual"]) == {-1.0}
    assert sum(values["histogram"]["rows"]) == 300
