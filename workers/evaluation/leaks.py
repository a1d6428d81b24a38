"""How much each column tells of the target by itself, and hints that one of them knows the answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]  # no stubs
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, recall_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from workers.families.encoding import TreeEncoder
from workers.learning import Array, Inputs, LearningData, take

_ROWS = 5000
_COLUMNS = 1000
_SUSPICIOUS = 0.985  # balanced accuracy or R2 of one column alone
_DEPTH = 5
_SHOWN = 20
# A column that alone tells half of what there is to tell, and that takes a fifth of what a model tells with it. Of 15
# clean data sets the largest such fall is 0.08 (SKAB's flow rate); without the length of the call, models of bank
# marketing lose 0.40.
_STRONG, _LEANS = 0.5, 0.2
_LEAST_COLUMNS = 8  # of fewer, each may well have something of its own to tell
_LEANING_COLUMNS = 2  # of the strongest are left out in turn
_MOST_COLUMNS, _MOST_CLASSES = 300, 10  # with more it takes over five seconds
_LEAST_TEST_ROWS = 50
_CHANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Associations:
    """What single columns tell of test rows: warnings, and `columns`, the strongest first.

    The `score` is 0 for guessing and 1 for perfection: R2, or twice the area under the ROC curve above one half.
    """

    hints: list[str]
    columns: list[dict[str, Any]]


def look_for_leaks(data: LearningData, test: Inputs, y_test: Array) -> Associations:
    """Measure each column, and warn of what may be known only after the target is; texts may well predict it.

    Targets of several labels are not looked at.
    """
    if "text" in data.train.inputs or data.task == "multilabel":
        return Associations([], [])
    encoder, x = TreeEncoder.learn(data, keep_missing=True)
    some, some_test = (_sample(len(y), data.training.seed) for y in (data.train.y, y_test))
    x_test = encoder.transform(take(test, some_test))
    rows = _Rows(x[some], data.train.y[some], x_test, y_test[some_test], data.n_classes)
    names = [c.name for kind in ("numeric", "categorical") for c in data.signature.columns if c.tensor == kind]
    hints = []
    if len(names) > _COLUMNS:
        hints.append(f"only the first {_COLUMNS} of {len(names)} columns were looked at for leaks")
    found = [rows.alone(j) for j in range(min(len(names), _COLUMNS))]
    hints += [
        f"column '{name}' alone predicts the target almost perfectly (score {score:.3f}): it may be known only "
        "after the target is; if so, name it in features.drop"
        for name, (score, _) in zip(names, found, strict=False)
        if score >= _SUSPICIOUS
    ]
    scores = [told for _, told in found]
    order = sorted(range(len(scores)), key=lambda j: -scores[j])
    if not hints:
        hints += _leans_on(rows, names, scores, order)
    if data.n_classes:
        hints += _told_by_gaps(data, test, y_test)
    return Associations(hints, [{"column": names[j], "score": round(scores[j], 4)} for j in order[:_SHOWN]])


def _sample(count: int, seed: int) -> Array:
    """At most _ROWS rows: of the first ones alone, data in some order would show only a part."""
    if count <= _ROWS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, _ROWS, replace=False))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Encoded columns FP32 [N, columns] and targets, to learn from and to judge by."""

    x: Array
    y: Array
    x_test: Array
    y_test: Array
    n_classes: int

    def alone(self, column: int) -> tuple[float, float]:
        """Balanced accuracy or R2 of a small tree over one column, and what it tells of the target."""
        x, x_test = self.x[:, [column]], self.x_test[:, [column]]
        if not self.n_classes:
            found = self._told(DecisionTreeRegressor(max_depth=8, random_state=0).fit(x, self.y), x_test)
            return found, max(found, 0.0)
        tree = DecisionTreeClassifier(max_depth=_DEPTH, class_weight="balanced", random_state=0).fit(x, self.y)
        labels = np.unique(self.y_test)
        right = recall_score(self.y_test, tree.predict(x_test), labels=labels, average="macro", zero_division=0.0)
        return float(right), max(self._told(tree, x_test), 0.0)

    def together(self, columns: list[int]) -> float:
        """What boosted trees over several columns tell of the target."""
        kind: Any = HistGradientBoostingClassifier if self.n_classes else HistGradientBoostingRegressor
        model = kind(max_iter=30, learning_rate=0.2, max_leaf_nodes=15, random_state=0)
        return self._told(model.fit(self.x[:, columns], self.y), self.x_test[:, columns])

    def _told(self, model: Any, x_test: Array) -> float:  # noqa: ANN401 - one of scikit-learn's
        """R2, or twice the area under the ROC curve above guessing, the mean over classes against all others."""
        if not self.n_classes:
            return float(r2_score(self.y_test, model.predict(x_test))) if len(x_test) > 1 else 0.0
        chances, known = model.predict_proba(x_test), model.classes_.tolist()
        if self.n_classes == 2 and len(known) == 2:  # noqa: PLR2004 - one class is the other's opposite
            chances, known = chances[:, 1:], known[1:]
        is_class = self.y_test[:, None] == np.asarray(known)
        inside, outside = is_class.sum(axis=0), (~is_class).sum(axis=0)
        both = (inside > 0) & (outside > 0)
        if not both.any():
            return 0.0
        ranks = (rankdata(chances, axis=0) * is_class).sum(axis=0)[both]  # the area by ranks (Mann and Whitney)
        inside, outside = inside[both], outside[both]
        return float(np.mean(2 * (ranks - inside * (inside + 1) / 2) / (inside * outside) - 1))


def _leans_on(rows: _Rows, names: list[str], scores: list[float], order: list[int]) -> Iterator[str]:
    """Strong columns without which a model tells much less; those that others can stand in for are none."""
    strong = [j for j in order[:_LEANING_COLUMNS] if scores[j] >= _STRONG]
    fits = _LEAST_COLUMNS <= len(scores) <= _MOST_COLUMNS and len(rows.y_test) >= _LEAST_TEST_ROWS
    if not strong or not fits or rows.n_classes > _MOST_CLASSES:
        return
    everything = list(range(len(scores)))
    full = rows.together(everything)
    for left_out in strong:
        less = max(rows.together([j for j in everything if j != left_out]), 0.0)
        if full > 0 and (full - less) / full >= _LEANS:
            yield (
                f"models lean on column '{names[left_out]}': without it they tell {less:.2f} of the target, with it "
                f"{full:.2f}, and it alone {scores[left_out]:.2f} (0: guessing, 1: all); if it is known only after the "
                "target is, name it in features.drop"
            )


def _told_by_gaps(data: LearningData, test: Inputs, y_test: Array) -> Iterator[str]:
    """Columns that are there (or missing) only in rows of one class, beyond chance: often filled in afterwards."""
    y, signature = data.train.y, data.signature
    shares = np.bincount(y, minlength=data.n_classes) / len(y)
    for column in signature.columns[:_COLUMNS]:
        gaps, gaps_test = (_gaps(inputs[column.tensor][:, column.index]) for inputs in (data.train.inputs, test))
        for state, rows, rows_test in (("there", ~gaps, ~gaps_test), ("missing", gaps, gaps_test)):
            if not rows.any() or rows.all() or not rows_test.any():
                continue
            label = int(y[rows][0])
            pure = (y[rows] == label).all() and (y_test[rows_test] == label).all()
            if pure and shares[label] ** int(rows.sum()) < _CHANCE:
                yield (
                    f"column '{column.name}' is {state} only in rows of class '{signature.classes[label]}' "
                    f"({int(rows.sum())} of the training rows): it may be filled in after the target is known; if so, "
                    "name it in features.drop"
                )


def _gaps(values: Array) -> Array:
    return np.asarray(values == "" if values.dtype == object else np.isnan(values))
