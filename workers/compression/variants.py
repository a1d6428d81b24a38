"""Make the variants that suit a graph, measure each on this host, and keep those that are worth it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from app.specs.jobs import CompressBudget
from workers.compression.int8 import CALIBRATION_ROWS, quantize_convolutions, quantize_weights
from workers.compression.trees import NOTE, truncate_trees
from workers.data.prepare import Prepared
from workers.evaluation.metrics import metric_drop
from workers.evaluation.variant import Judge, Variant
from workers.learning import take

_GAIN = 1.05  # smaller or faster by this factor, or it is not worth a file
_TREE_SHARE = 0.5  # of the budget that truncation may use up on validation rows, since test rows will differ
_Made = tuple[bytes, dict[str, Any]]


def worst_drop(main_metric: str, full: dict[str, float], metrics: dict[str, float]) -> tuple[float, str]:
    """(largest loss, of which metric) of the main metric and of accuracy, where there is one.

    Accuracy too, since an ensemble without its last trees may rank rows as before while every probability has moved
    to one side of the threshold. A metric that these rows do not have, as ROC AUC of one class, is passed over.
    """
    names = [name for name in (main_metric, "accuracy") if name in full and name in metrics] or [next(iter(full))]
    return max((metric_drop(name, full[name], metrics[name]), name) for name in names)


@dataclass(frozen=True, slots=True)
class Compressor:
    """A model, the rows it is judged by, and what a variant of it may cost."""

    model: bytes
    prepared: Prepared
    judge: Judge
    main_metric: str
    budget: CompressBudget

    def run(self, output: Path) -> list[Variant]:
        """Try what suits the graph; an accepted variant is written to `output/variants/<name>/model.onnx`."""
        graph = onnx.load_from_string(self.model)
        operators = {node.op_type for node in graph.graph.node}
        if "TreeEnsembleRegressor" in operators:
            name, made = "optimized", self._truncate(graph)
        elif "Conv" in operators:
            rows = np.random.default_rng(0).permutation(self.prepared.split.train)[:CALIBRATION_ROWS]
            name, made = "int8", quantize_convolutions(graph, take(self.prepared.inputs, rows))
        elif operators & {"MatMul", "Gemm"}:
            name, made = "int8", quantize_weights(graph)
        else:
            return []
        if made is None:
            reason = "no smaller ensemble was within the budget on validation rows"
            return [Variant(name, "rejected", {"method": "truncate_trees", "note": NOTE}, None, 0, reason=reason)]
        variant = self._decide(name, *made)
        if variant.path:
            path = output / variant.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[0])
        return [variant]

    def _truncate(self, graph: onnx.ModelProto) -> _Made | None:
        inputs, y = self.prepared.part("validation")
        watch = Judge(self.judge.task, inputs, y, self.judge.positive, self.judge.threads)
        full = watch.metrics(self.model)
        budget = self.budget.max_metric_drop * _TREE_SHARE
        return truncate_trees(graph, lambda raw: worst_drop(self.main_metric, full, watch.metrics(raw))[0], budget)

    def _decide(self, name: str, raw: bytes, recipe: dict[str, Any]) -> Variant:
        """Accept when what counts is within the budget on test rows and size or speed is better by _GAIN."""
        metrics, full = self.judge.metrics(raw), self.judge.metrics(self.model)
        before, after = self.judge.latency(self.model, raw)
        drop, metric = worst_drop(self.main_metric, full, metrics)
        smaller, faster = len(self.model) / len(raw), after.items_per_s / before.items_per_s
        quicker = before.p50_ms / after.p50_ms  # for one row
        reason = None
        if drop > self.budget.max_metric_drop:
            reason = f"{metric} is worse by {drop:.4g}, over the budget of {self.budget.max_metric_drop:g}"
        elif smaller < _GAIN and (faster < _GAIN or quicker < 1 / _GAIN):
            reason = (
                f"not better: {smaller:.2f} times smaller, {faster:.2f} times the rows a second, {quicker:.2f} times "
                f"as quick for one row; it takes {_GAIN:g} in size, or in rows a second and not slower for one row"
            )
        path = None if reason else f"variants/{name}/model.onnx"
        recipe = {**recipe, "speed_up": round(faster, 3), "metric_drop": round(drop, 6)}
        state: Literal["accepted", "rejected"] = "rejected" if reason else "accepted"
        return Variant(name, state, recipe, path, len(raw), metrics, after.to_json(), reason)
