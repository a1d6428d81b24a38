"""Metrics on the parts of the test rows that a column divides them into."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from workers.evaluation.judge import Judge
from workers.evaluation.metrics import LOWER_IS_BETTER
from workers.evaluation.report import intervals_of
from workers.learning import Array

_LEAST_ROWS = 20  # for a warning
_WORST = 5  # that are warned of


def judge_slices(
    judge: Judge, answers: Array, labels: Mapping[str, Array], main: str
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Rows, metrics and the main metric's interval for each slice, and a warning of each that is surely worse.

    Args:
        judge: with the test rows.
        answers: of the model to them.
        labels: the slice of each test row, text [N], by column.
        main: the main metric.

    Returns:
        Slices by column, JSON-ready, those of most rows first; warnings of the worst five.
    """
    overall = judge.score(answers, names=(main,)).get(main)
    found: dict[str, list[dict[str, Any]]] = {}
    worse: list[tuple[float, str]] = []
    for column, texts in labels.items():
        names, counts = np.unique(texts.astype(str), return_counts=True)
        found[column] = []
        for name in names[np.argsort(-counts, kind="stable")].tolist():
            rows = np.flatnonzero(texts == name)
            groups = None if judge.groups is None else judge.groups[rows]
            part = replace(judge, inputs={}, y=judge.y[rows], groups=groups)
            bounds = intervals_of(part, answers[rows]).bounds.get(main)
            metrics = part.score(answers[rows])
            found[column].append(
                {"value": name, "rows": len(rows), "metrics": metrics, "interval": bounds and list(bounds)}
            )
            if overall is None or bounds is None or main not in metrics or len(rows) < _LEAST_ROWS:
                continue
            surely = bounds[0] > overall if main in LOWER_IS_BETTER else bounds[1] < overall
            if surely:
                words = f"slice {column} = '{name}' ({len(rows)} rows): {main} {metrics[main]:.4g}"
                words += f" ({bounds[0]:.4g} to {bounds[1]:.4g}), against {overall:.4g} of all"
                worse.append((abs(metrics[main] - overall), words))
    worse.sort(key=lambda entry: -entry[0])
    return found, [words for _, words in worse[:_WORST]]
