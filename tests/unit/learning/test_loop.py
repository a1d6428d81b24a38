"""Batches of the training loop."""

import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidSpec
from workers.jobs import train
from workers.training.loop import Batches, Tensors


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from([None, 7]))
def test_there_are_as_many_batches_as_announced_and_each_row_once(rows: int, size: int, seed: int | None):
    batches = Batches(Tensors((torch.arange(rows),), torch.arange(rows)), size, seed)
    got = [y.tolist() for _, y in batches]
    assert len(got) == len(batches)
    assert sorted(row for batch in got for row in batch) == list(range(rows))
    assert max(map(len, got)) <= size + 1
    assert seed is None or len(got) == 1 or size == 1 or min(map(len, got)) > 1


@pytest.mark.parametrize("size", [1, 41])  # of 42 training rows
def test_a_row_may_be_left_over(make_job: Callable[..., Any], mixed: pl.DataFrame, size: int):
    spec = {"features": {"drop": ["amount"]}, "training": {"epochs": 1, "batch_size": size}}
    job = make_job(mixed.head(60), family="mlp", **spec)
    train.run(job)
    assert json.loads((job.output / "card.json").read_text())["split"]["rows"]["train"] == 42
    assert [e["step"] for e in job.seen if e["event"] == "metric" and e["name"] == "validation_loss"] == [1]


def test_a_loss_that_was_never_finite_names_the_learning_rate(make_job: Callable[..., Any], diabetes: pl.DataFrame):
    wild = {"optimizer": {"name": "sgd", "lr": 10.0, "momentum": 0.99}, "gradient_clip": None, "batch_size": 4}
    job = make_job(diabetes, family="mlp", task="regression", training={"epochs": 2, **wild})
    with pytest.raises(InvalidSpec, match="never finite") as caught:
        train.run(job)
    assert caught.value.errors[0].loc == ("training", "optimizer", "lr")
