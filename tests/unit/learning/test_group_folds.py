"""Rows that are valued or judged by other rows within a training: none of their own group, where the split keeps so."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from app.core.signature import Signature, Tensor
from app.specs.training import TrainingSpec
from workers.context import Stopped
from workers.families.encoding import TreeEncoder
from workers.families.per_label import fit_labels
from workers.families.target_means import folds_of, split_folds
from workers.families.text_solver import Solver
from workers.learning import LearningData, Part

MakeJob = Callable[..., Any]
GROUPS = np.arange(90) // 9  # ten groups of nine rows
TENSORS = (Tensor("numeric", "FP32", (-1, 1)), Tensor("categorical", "BYTES", (-1, 1)))
OUTPUT = (Tensor("probabilities", "FP32", (-1, 2)),)


@pytest.fixture
def data() -> LearningData:
    """Each group has a category of its own, and one answer."""
    inputs = {
        "numeric": (GROUPS % 5)[:, None].astype(np.float32),
        "categorical": GROUPS.astype(str).astype(object)[:, None],
    }
    part = Part(inputs, GROUPS % 2)
    validation = Part({name: x[:4] for name, x in inputs.items()}, part.y[:4])
    signature = Signature("classification", TENSORS, OUTPUT, (), ("no", "yes"))
    return LearningData(signature, part, validation, folds=lambda count: np.append(GROUPS % count, [0] * 4))


def test_trees_value_a_category_by_other_groups(data: LearningData):
    assert np.array_equal(folds_of(data), GROUPS % 5)
    _, x = TreeEncoder.learn(data, keep_missing=True)
    assert np.abs(x[:, 1]).max() < 1e-6  # no other group has the category


def test_so_they_do_where_a_row_may_have_several_labels(data: LearningData, make_job: MakeJob):
    several = np.stack([GROUPS % 2, 1 - GROUPS % 2], axis=1).astype(np.float32)
    signature = replace(data.signature, task="multilabel")
    parts = [Part(part.inputs, several[: len(part)]) for part in (data.train, data.validation)]
    seen = []

    def fit(own: LearningData, _: Any) -> Any:
        seen.append(np.abs(TreeEncoder.learn(own, keep_missing=True)[1][:, 1]).max())
        raise Stopped

    with pytest.raises(Stopped):
        fit_labels(
            fit, replace(data, signature=signature, train=parts[0], validation=parts[1]),
            make_job(pl.DataFrame({"target": [0, 1]})),
        )  # fmt: skip
    assert seen[0] < 1e-6


def test_texts_are_solved_and_judged_by_whole_groups(make_job: MakeJob, data: LearningData):
    solver = Solver(data, make_job(pl.DataFrame({"target": [0, 1]})), None)
    for rows, parts in ((90, 3), (60, 3)):  # of some rows alone, which are no longer those of the folds, at random
        found = solver._parts(sp.csr_matrix(np.ones((rows, 1))), data.train.y[:rows])
        assert len(found) == parts
        apart = [not set(GROUPS[kept]) & set(GROUPS[held]) for kept, held in found]
        assert all(apart) if rows == 90 else not any(apart)


@pytest.mark.parametrize("folds", [None, lambda _: np.append(np.full(90, -1), [0] * 4), lambda _: np.zeros(94, int)])
def test_where_time_or_nothing_divides_rows_are_drawn(data: LearningData, folds: Any):
    drawn = replace(data, folds=folds, training=TrainingSpec(seed=3))
    assert split_folds(drawn, 5) is None
    assert np.bincount(folds_of(drawn)).tolist() == [18] * 5
