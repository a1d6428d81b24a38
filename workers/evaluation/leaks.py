"""Hints that a column knows the answer."""

from typing import Any

import numpy as np
from sklearn.metrics import r2_score, recall_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from workers.families.encoding import TreeEncoder
from workers.learning import Array, Inputs, LearningData, take

_ROWS = 5000
_COLUMNS = 1000
_SUSPICIOUS = 0.985  # balanced accuracy or R2 of one column alone
_DEPTH = 5


def leak_hints(data: LearningData, test: Inputs, y_test: Array) -> list[str]:
    """Warn of each column that alone predicts the target of unseen rows almost perfectly; texts may well do so.

    Targets of several labels are not looked at.
    """
    if "text" in data.train.inputs or data.task == "multilabel":
        return []
    encoder, x = TreeEncoder.learn(data, keep_missing=False)
    some = slice(0, _ROWS)
    x, y = x[some], data.train.y[some]
    x_test, y_test = encoder.transform(take(test, some)), y_test[some]
    numbers = [c.name for c in data.signature.columns if c.tensor == "numeric"]
    texts = [c.name for c in data.signature.columns if c.tensor == "categorical"]
    names, hints = numbers + texts, []
    if len(names) > _COLUMNS:
        hints.append(f"only the first {_COLUMNS} of {len(names)} columns were looked at for leaks")
    for j, name in enumerate(names[:_COLUMNS]):
        score = _alone(x[:, [j]], y, x_test[:, [j]], y_test, data.task)
        if score >= _SUSPICIOUS:
            hints.append(
                f"column '{name}' alone predicts the target almost perfectly (score {score:.3f}): it may be known only "
                "after the target is; if so, name it in features.drop"
            )
    return hints


def _alone(x: Array, y: Array, x_test: Array, y_test: Array, task: str) -> float:
    if task == "regression":
        regressor: Any = DecisionTreeRegressor(max_depth=8, random_state=0).fit(x, y)
        return float(r2_score(y_test, regressor.predict(x_test))) if len(y_test) > 1 else 0.0
    tree = DecisionTreeClassifier(max_depth=_DEPTH, class_weight="balanced", random_state=0).fit(x, y)
    return float(
        recall_score(y_test, tree.predict(x_test), labels=np.unique(y_test), average="macro", zero_division=0.0)
    )
