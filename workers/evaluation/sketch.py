"""Reference histograms of a model's inputs and outputs on its training rows, for drift checks."""

from collections import Counter
from typing import Any

import numpy as np

from app.core.signature import Signature
from workers.learning import PLAIN, Array, Inputs, Rule

_BINS = 20
_TOP = 50


def make_sketch(signature: Signature, inputs: Inputs, answers: Array, rule: Rule = PLAIN) -> dict[str, Any]:
    """One entry a column and one an output.

    Numbers: `edges` (quantiles, ascending) and `counts` of the bins between, `missing`. Categories: `counts` of the
    most frequent values, `other`, `missing`. Texts: how many characters they have, as numbers. Pictures: the mean
    brightness per channel, 0-255.
    """
    columns: dict[str, Any] = {}
    for column in signature.columns:
        if column.type == "image":
            brightness = inputs["image"].mean(axis=(2, 3))
            columns |= {f"{column.name}.{c}": _numbers(brightness[:, c]) for c in range(brightness.shape[1])}
        elif column.type == "text":
            lengths = np.array([len(text) or np.nan for text in inputs["text"][:, column.index]])
            columns[column.name] = _numbers(lengths)
        elif column.tensor == "categorical":
            columns[column.name] = _categories(inputs["categorical"][:, column.index])
        else:
            columns[column.name] = _numbers(inputs["numeric"][:, column.index])
    if signature.task == "regression":
        outputs: dict[str, Any] = {"value": _numbers(answers if answers.ndim == 1 else answers[:, 0])}
    else:
        if signature.task == "multilabel":
            labels = (answers >= 0.5).sum(axis=0)  # noqa: PLR2004 - a half, from which a label is told
        else:
            labels = np.bincount(rule.labels(answers), minlength=len(signature.classes))
        outputs = {
            "label": {"type": "categories", "counts": dict(zip(signature.classes, labels.tolist(), strict=True))},
            "confidence": _numbers(answers.max(axis=1)),
        }
    return {"version": 1, "rows": len(answers), "inputs": columns, "outputs": outputs}


def _numbers(values: Array) -> dict[str, Any]:
    present = values[~np.isnan(values)].astype(np.float64)
    if not len(present):
        return {"type": "numbers", "edges": [], "counts": [], "missing": len(values)}
    edges = np.unique(np.quantile(present, np.linspace(0, 1, _BINS + 1)))
    edges = edges if len(edges) > 1 else np.asarray([edges[0], np.nextafter(edges[0], np.inf)])
    counts, _ = np.histogram(present, edges)
    return {
        "type": "numbers", "edges": edges.tolist(), "counts": counts.tolist(), "missing": len(values) - len(present),
        "mean": float(present.mean()), "std": float(present.std()),
    }  # fmt: skip


def _categories(values: Array) -> dict[str, Any]:
    counts = Counter(values.tolist())
    missing = counts.pop("", 0)
    top = dict(counts.most_common(_TOP))
    return {"type": "categories", "counts": top, "other": sum(counts.values()) - sum(top.values()), "missing": missing}
