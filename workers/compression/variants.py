"""Make the variants that suit a graph, measure each on this host, and keep those that are worth it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from app.specs.jobs import CompressBudget
from workers.compression.int8 import CALIBRATION_ROWS, quantize_convolutions, quantize_weights
from workers.compression.trees import NOTE, has_tree_order, truncate_trees
from workers.data.prepare import Prepared
from workers.evaluation.loss import Loss, worst_loss
from workers.evaluation.variant import Judge, Variant
from workers.export.runtime import open_session
from workers.learning import take

_LEAST_ROWS = 10  # that decide
_GAIN = 1.05  # smaller or faster by this factor, or it is not worth a file
_Made = tuple[bytes, dict[str, Any]]


class Compressor:
    """A model, the rows that decide, the rows that are reported, and what a variant may cost."""

    def __init__(
        self, model: bytes, prepared: Prepared, judge: Judge, main_metric: str, budget: CompressBudget
    ) -> None:
        self.model, self.prepared, self.judge, self.main_metric = model, prepared, judge, main_metric
        self.budget = budget.max_metric_drop
        inputs, y = prepared.part("validation")
        # Test rows decide nothing: what is reported of them would no longer be what unseen rows give.
        self._decider = replace(judge, inputs=inputs, y=y, groups=None)
        self._full = self._decider.answers(model)

    def run(self, output: Path) -> list[Variant]:
        """Try what suits the graph; an accepted variant is written to `output/variants/<name>/model.onnx`."""
        graph = onnx.load_from_string(self.model)
        name, make = self._suiting(graph)
        if make is None:
            return []
        if (rows := len(self._decider.y)) < _LEAST_ROWS:
            reason = f"{rows} validation rows say nothing of others; at least {_LEAST_ROWS} are needed"
            return [Variant(name, "rejected", {"method": "none"}, None, 0, reason=reason)]
        try:
            made = make()
            if made is not None:
                open_session(made[0], self.judge.threads)
        except Exception as error:  # noqa: BLE001 - of the quantizer: an imported graph may hold anything
            words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return [Variant(name, "rejected", {"method": "none"}, None, 0, reason=f"it cannot be made: {words}")]
        if made is None:
            reason = f"no smaller ensemble is surely within the budget on {len(self._decider.y)} validation rows"
            return [Variant(name, "rejected", {"method": "truncate_trees", "note": NOTE}, None, 0, reason=reason)]
        variant = self._decide(name, *made)
        if variant.path:
            path = output / variant.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(made[0])
        return [variant]

    def _suiting(self, graph: onnx.ModelProto) -> tuple[str, Callable[[], _Made | None] | None]:
        """The variant's name and what makes it; None where nothing suits the operators."""
        operators = {node.op_type for node in graph.graph.node}
        if "TreeEnsembleRegressor" in operators and has_tree_order(graph):
            return "optimized", lambda: truncate_trees(graph, lambda raw: self._loss(raw).at_most <= self.budget)
        if "Conv" in operators:
            rows = np.random.default_rng(0).permutation(self.prepared.split.train)[:CALIBRATION_ROWS]
            some, batch = take(self.prepared.inputs, rows), self.judge.answering.batch
            return "int8", lambda: quantize_convolutions(graph, some, batch)
        if operators & {"MatMul", "Gemm"}:
            return "int8", lambda: quantize_weights(graph)
        return "", None

    def _loss(self, raw: bytes) -> Loss:
        return worst_loss(self._decider, self.main_metric, self._full, self._decider.answers(raw), self.budget)

    def _decide(self, name: str, raw: bytes, recipe: dict[str, Any]) -> Variant:
        """Accept when the loss is surely within the budget and size or speed is better by _GAIN."""
        if not np.isfinite(self._decider.answers(raw)).all():
            return Variant(name, "rejected", recipe, None, len(raw), reason="its answers are not finite")
        loss = self._loss(raw)
        before, after = self.judge.latency(self.model, raw)
        smaller, faster = len(self.model) / len(raw), after.items_per_s / before.items_per_s
        quicker = before.p50_ms / after.p50_ms  # for one row
        reason = None
        if loss.at_most > self.budget:
            reason = (
                f"{loss.metric} is worse by {loss.measured:.4g} on {len(self._decider.y)} validation rows, "
                f"by up to {loss.at_most:.4g} on others, over the budget of {self.budget:g}"
            )
        elif smaller < _GAIN and (faster < _GAIN or quicker < 1 / _GAIN):
            reason = (
                f"not better: {smaller:.2f} times smaller, {faster:.2f} times the rows a second, {quicker:.2f} times "
                f"as quick for one row; it takes {_GAIN:g} in size, or in rows a second and not slower for one row"
            )
        path = None if reason else f"variants/{name}/model.onnx"
        drops = {"metric_drop": round(loss.measured, 6), "metric_drop_at_most": round(loss.at_most, 6)}
        recipe = {**recipe, "speed_up": round(faster, 3), **drops}
        state: Literal["accepted", "rejected"] = "rejected" if reason else "accepted"
        return Variant(name, state, recipe, path, len(raw), self.judge.metrics(raw), after.to_json(), reason)
