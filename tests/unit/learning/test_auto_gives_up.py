"""The family `auto` over data that a candidate cannot learn from, or none can."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.core.errors import InvalidData, InvalidSpec, ParityFailed
from app.core.signature import Signature, Tensor
from workers.automl.members import Pool
from workers.families.linear import Linear
from workers.jobs import train
from workers.learning import LearningData, Part

MakeJob = Callable[..., Any]
SPEC: dict[str, Any] = {"family": "auto", "features": {"drop": ["amount"]}}


@pytest.mark.parametrize("trained", ["linear-1", "linear-all-rows-0"])
def test_what_a_library_refuses_costs_one_candidate(
    make_job: MakeJob, mixed: pl.DataFrame, monkeypatch: pytest.MonkeyPatch, trained: str
):
    """While its folds are learnt it is given up; while it learns from all rows the models of its folds stay."""
    learn = Linear.fit

    def failing(self: Linear, data: LearningData, job: Any) -> Any:
        if job.name == trained:
            raise RuntimeError("CUDA out of memory")
        return learn(self, data, job)

    monkeypatch.setattr(Linear, "fit", failing)
    families = ["linear", "naive_bayes"] if trained == "linear-1" else ["linear"]
    job = make_job(mixed, **SPEC | {"params": {"folds": 2, "families": families}})
    train.run(job)
    told = {"linear-1": "linear", "linear-all-rows-0": "linear of all rows"}[trained]
    reason = "RuntimeError: CUDA out of memory"
    fit = json.loads((job.output / "card.json").read_text())["fit"]
    assert fit["given_up"] == {told: reason}
    assert f"{told} was given up: {reason}" in {e["message"] for e in job.seen if e["event"] == "log"}
    (line,) = fit["tried"]
    assert (line["name"], line["models"]) == (("naive_bayes", 1) if trained == "linear-1" else ("linear", 2))


def test_a_metric_that_the_rows_leave_undefined_chooses_nothing(make_job: MakeJob, mixed: pl.DataFrame):
    """A share of a target of zero is none, so all models would be as bad; they are told apart by the usual metric."""
    frame = mixed.drop("target").with_columns(target=pl.col("amount").clip(1000) - 1000)
    params = {"folds": 2, "families": ["linear", "extra_trees"], "time_limit_s": 300}
    job = make_job(frame, **SPEC | {"task": "regression", "metrics": ["mape"], "params": params})
    assert train.run(job)["main_metric"] == "rmse"
    fit = json.loads((job.output / "card.json").read_text())["fit"]
    assert all(np.isfinite(line["rmse"]) for line in fit["tried"])
    assert fit["why"].startswith("rmse ")
    told = [event["message"] for event in job.seen if event["event"] == "log"]
    assert "mape is undefined on these rows, so models are chosen by rmse" in told


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (
            RuntimeError("CUDA out of memory"),
            InvalidSpec,
            "none of them could learn .* RuntimeError: CUDA out of memory",
        ),
        (ParityFailed("not the same"), ParityFailed, "not the same"),
        (MemoryError("too much"), MemoryError, "too much"),
    ],
)
def test_no_candidate_can_be_trained(
    make_job: MakeJob,
    mixed: pl.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    raised: type[Exception],
    words: str,
):
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(Linear, "fit", failing)
    with pytest.raises(raised, match=words):
        train.run(make_job(mixed, **SPEC | {"params": {"folds": 2, "families": ["linear"]}}))


@pytest.mark.parametrize(("grouped", "where"), [(True, ("split", "method")), (False, ("target",))])
def test_folds_that_leave_one_class_are_refused_before_anything_is_trained(*, grouped: bool, where: tuple[str, ...]):
    y = np.zeros(40, np.int64)
    y[[3, 4] if grouped else [3]] = 1
    train_rows, validation = (Part({"numeric": np.zeros((20, 1), np.float32)}, rows) for rows in (y[:20], y[20:]))
    tensors, output = (Tensor("numeric", "FP32", (-1, 1)),), (Tensor("probabilities", "FP32", (-1, 2)),)
    data = LearningData(
        Signature("classification", tensors, output, (), ("no", "yes")), train_rows, validation,
        folds=(lambda count: np.arange(40) // 10 % count) if grouped else None,
    )  # fmt: skip
    with pytest.raises(InvalidData, match="of another class than 'no' are in one fold") as caught:
        Pool.of("tabular", data, 4).check()
    assert caught.value.errors[0].loc == where
    y[30] = 1
    Pool.of("tabular", data, 4).check()
