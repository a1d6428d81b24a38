"""Variants: what decides over them, and what is said of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest

from app.specs.compression import CompressBudget
from app.specs.jobs import TrainSpec
from workers.compression.material import Material
from workers.compression.measuring import Measuring
from workers.compression.recipes import Maker
from workers.compression.variants import Compressor
from workers.data.prepare import Prepared, prepare
from workers.evaluation.judge import Judge
from workers.evaluation.loss import worst_loss
from workers.jobs import compress, train
from workers.learning import Rule

MakeJob = Callable[..., Any]
SPEC: dict[str, Any] = {"features": {"drop": ["amount"]}}


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about how fast a model is."""
    monkeypatch.setattr("workers.evaluation.latency._BUDGET_S", 0.01)


def prepared_of(job: Any) -> Prepared:
    return prepare(job, TrainSpec.model_validate(job.spec).check_family())


def compressor_of(job: Any, model: bytes, budget: float, prepared: Prepared | None = None) -> Compressor:
    prepared = prepared or prepared_of(job)
    judge = Judge("classification", *prepared.part("test"), rule=Rule(), threads=1)
    return Compressor(model, prepared, judge, "roc_auc", CompressBudget(max_metric_drop=budget))


def measuring_of(job: Any, model: bytes, budget: float, folder: Path) -> Measuring:
    prepared = prepared_of(job)
    judge = Judge("classification", *prepared.part("validation"), rule=Rule(), threads=1)
    maker = Maker(Material(model, prepared, judge, 0, folder))
    return Measuring(maker, judge, "roc_auc", CompressBudget(max_metric_drop=budget))


def test_compress_later_judges_by_the_same_rows(make_job: MakeJob, mixed: pl.DataFrame):
    job = make_job(mixed, family="random_forest", **SPEC)
    trained = train.run(job)
    later = make_job(mixed, name="later", kind="compress")
    later.spec = {"kind": "compress", "model": "m", "version": 1, "budget": {"max_metric_drop": 0.05}}
    job.output.rename(later.input / "model")
    (variant,) = compress.run(later)["variants"]
    assert (variant["name"], variant["state"]) == ("optimized", "accepted")
    assert variant["recipe"]["trees"] < variant["recipe"]["of"] == 200
    assert variant["metrics"]["roc_auc"] >= trained["metrics"]["roc_auc"] - 0.05
    assert [str(p.relative_to(later.output)) for p in later.output.rglob("*.onnx")] == [variant["path"]]


def test_a_candidate_over_the_budget_is_rejected_with_its_numbers(
    make_job: MakeJob, mixed: pl.DataFrame, tmp_path: Path
):
    models = []
    for trees in (100, 1):
        spec = {"family": "gbdt", "params": {"n_estimators": trees, "num_leaves": 4}, **SPEC}
        job = make_job(mixed, name=f"trees-{trees}", **spec)
        train.run(job)
        models.append((job.output / "model.onnx").read_bytes())
    found = measuring_of(job, models[0], 0.001, tmp_path).measure([], models[1])
    assert (found.accepted, found.bytes) == (False, len(models[1]))
    assert "over the budget of 0.001" in str(found.reason)
    assert found.loss["measured"] > 0.001
    assert found.latency["p50_ms"] > 0


def test_a_variant_that_loads_and_does_not_run_is_listed_as_one_that_cannot_be_made(
    make_job: MakeJob, mixed: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = make_job(mixed, **{**SPEC, "family": "gbdt", "params": {"n_estimators": 2}})
    train.run(job)
    graph = onnx.load(job.output / "model.onnx")
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    (output,) = (value.name for value in broken.graph.output)
    for node in broken.graph.node:
        node.output[:] = [f"{name}/whole" if name == output else name for name in node.output]
    broken.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1, 1]), "one number"))
    broken.graph.node.append(onnx.helper.make_node("Reshape", [f"{output}/whole", "one number"], [output]))
    measuring = measuring_of(job, graph.SerializeToString(), 0.1, tmp_path)
    monkeypatch.setattr(Maker, "make", lambda *_: broken.SerializeToString())
    found = measuring.try_out([{"step": "half_weights"}])
    assert str(found.failed).startswith("it cannot be made: ")
    assert "Reshape" in str(found.failed)


def test_test_rows_decide_nothing(make_job: MakeJob, mixed: pl.DataFrame, tmp_path: Path):
    job = make_job(mixed, family="gbdt", **SPEC)
    train.run(job)
    model = (job.output / "model.onnx").read_bytes()
    right = prepared_of(job)
    y = right.y.copy()
    y[right.split.test] = 1 - y[right.split.test]
    wrong = dataclasses.replace(right, y=y)
    made = []
    for name, prepared in (("right", right), ("wrong", wrong)):
        [variant] = compressor_of(job, model, 0.05, prepared).run(tmp_path / name)
        made.append((variant.state, variant.recipe["trees"], variant.recipe["metric_drop"], variant.metrics))
    assert made[0][:3] == made[1][:3]
    assert made[0][3]["roc_auc"] == pytest.approx(1 - made[1][3]["roc_auc"])


def test_a_linear_models_variant_is_judged_too(make_job: MakeJob, cancer: pl.DataFrame):
    result = train.run(make_job(cancer, family="linear", compress={}))
    base, int8 = result["variants"]
    assert (base["name"], int8["name"], int8["recipe"]["method"]) == ("fp32", "int8", "static")
    assert int8["state"] == "accepted" or int8["reason"]
    assert set(int8["metrics"]) == set(base["metrics"])


class TestLoss:
    """Of answers whose accuracy is known, on rows of two classes."""

    def judge(self, rows: int) -> tuple[Judge, np.ndarray]:
        y = np.random.default_rng(1).integers(0, 2, rows)
        return Judge("classification", {}, y, Rule(), 1), np.eye(2)[y] * 0.8 + 0.1

    def test_it_grows_with_the_doubt(self):
        """A tenth of the labels are wrong: the standard error is that of 400 paired differences of 0 and 1."""
        judge, full = self.judge(400)
        other = full.copy()
        other[np.random.default_rng(0).permutation(400)[:40]] = [[0.45, 0.55]]
        loss = worst_loss(judge, "accuracy", full, other, budget=1.0)
        wrong = other.argmax(axis=1) != judge.y
        assert loss.measured == pytest.approx(wrong.mean())
        expected = 1.645 * wrong.std() / 400**0.5
        assert loss.at_most - loss.measured == pytest.approx(expected, rel=0.4)

    def test_one_row_of_few_proves_little(self):
        judge, full = self.judge(100)
        other = full.copy()
        other[0] = full[0][::-1]
        loss = worst_loss(judge, "accuracy", full, other, budget=1.0)
        assert loss.measured == pytest.approx(0.01)
        assert loss.at_most > 0.02

    def test_the_same_answers_lose_nothing(self):
        judge, full = self.judge(10)
        loss = worst_loss(judge, "roc_auc", full, full, budget=0.0)
        assert (loss.measured, loss.at_most) == (0.0, 0.0)

    def test_a_rare_class_may_be_away_without_a_group(self):
        judge = Judge("classification", {}, np.asarray([1] + [0] * 29), Rule(), 1)
        full = np.tile([0.7, 0.3], (30, 1))
        full[0] = [0.2, 0.8]
        loss = worst_loss(judge, "roc_auc", full, full[:, ::-1], budget=1.0)
        assert loss.measured == 1.0

    def test_accuracy_has_a_bound_of_its_own(self):
        """Every row ranks as before, and all are told to be of one class."""
        judge, full = self.judge(400)
        other = np.stack([1 - full[:, 1] / 4, full[:, 1] / 4], axis=1)
        lost = worst_loss(judge, "accuracy", full, other, budget=1.0).measured
        assert lost > 0.2
        both = worst_loss(judge, "roc_auc", full, other, budget=0.01)
        assert (both.metric, both.within, both.allowed) == ("accuracy", False, 0.01)
        apart = worst_loss(judge, "roc_auc", full, other, budget=0.01, accuracy_drop=1.0)
        assert (apart.metric, apart.within, apart.measured, apart.allowed) == ("roc_auc", True, 0.0, 0.01)
        own = worst_loss(judge, "accuracy", full, other, budget=0.01, accuracy_drop=1.0)
        assert (own.within, own.allowed) == (False, 0.01)

    def test_errors_are_relative(self):
        y = np.linspace(0, 1, 60)
        judge = Judge("regression", {}, y, Rule(), 1)
        loss = worst_loss(judge, "rmse", y + 0.1, y + 0.11, budget=1.0)
        assert (loss.metric, loss.measured) == ("rmse", pytest.approx(0.1))
        assert loss.at_most == pytest.approx(0.1)

    def test_an_error_may_not_grow_by_more_than_its_own_share(self):
        judge, full = self.judge(400)
        full[:40] = full[:40, ::-1]  # a tenth is wrong
        other = full.copy()
        other[40:44] = other[40:44, ::-1]
        loss = worst_loss(judge, "accuracy", full, other, 1.0, error_increase=0.2)
        assert (loss.measured, loss.allowed) == (pytest.approx(0.01), pytest.approx(0.02))
        y = np.linspace(0, 1, 60)
        values = worst_loss(Judge("regression", {}, y, Rule(), 1), "rmse", y + 0.1, y + 0.13, 0.01, error_increase=0.5)
        assert (values.within, values.allowed) == (True, 0.5)
