"""Make variants of a model within a budget, each measured on this host, and keep those that are worth it."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx

from app.core.host import host_name
from app.specs.compression import CompressBudget
from workers.compression.candidate import Candidate, Notebook
from workers.compression.front import front_of, nearest
from workers.compression.graphs import TREES, operators_of
from workers.compression.int8 import CALIBRATION_ROWS
from workers.compression.material import Material, Origin
from workers.compression.measuring import Measuring, drops
from workers.compression.memory import peak_bytes
from workers.compression.naming import described, name_of, names_of
from workers.compression.recipes import Maker, Recipe, key_of
from workers.compression.space import Space, shorter, usual_precision
from workers.compression.trees import NOTE, Forest, has_tree_order
from workers.context import JobContext, Stopped
from workers.data.prepare import Prepared
from workers.evaluation.judge import Judge
from workers.evaluation.latency import usual_batch
from workers.evaluation.variant import Variant
from workers.learning import take

_LEAST_ROWS = 10  # that decide
_ROOM = "compression"  # within a checkpoint


class Compressor:
    """A model, the rows that decide, the rows that are reported, and what a variant may cost.

    Args:
        model: serialised.
        prepared: its rows. Test rows decide nothing: what is reported of them would no longer be what unseen rows give.
            Of a model that has learnt from validation rows half of the test rows decide, and the others are reported.
        judge: with the rows that are reported.
        main_metric: of the model.
        budget: what is allowed and wanted.
        origin: how the model was trained, if it was trained here.
        job: whose checkpoint keeps what was measured.
    """

    def __init__(
        self, model: bytes, prepared: Prepared, judge: Judge, main_metric: str, budget: CompressBudget,
        *, origin: Origin | None = None, job: JobContext | None = None,
    ) -> None:  # fmt: skip
        self.model, self.prepared, self.judge, self.main_metric = model, prepared, judge, main_metric
        self.budget, self.origin, self.job = budget, origin, job
        self.span = (0.3, 0.98)  # of the job's progress, that a search fills
        self.report: dict[str, Any] | None = None  # of a search, after `run`
        inputs, y = prepared.part("validation")
        self._decider = replace(judge, inputs=inputs, y=y, groups=None)
        if origin is not None and origin.knows_validation:
            half = np.random.default_rng(budget.seed).permutation(len(judge.y)) % 2 == 0
            self._decider, self.judge = judge.of(half), judge.of(~half)

    def run(self, output: Path) -> list[Variant]:
        """What suits the graph; an accepted variant is written to `output/variants/<name>/model.onnx`."""
        graph = onnx.load_from_string(self.model)
        if (rows := len(self._decider.y)) < _LEAST_ROWS:
            reason = f"{rows} validation rows say nothing of others; at least {_LEAST_ROWS} are needed"
            name = "optimized" if TREES in operators_of(graph) else "int8" if usual_precision(graph) else ""
            return [Variant(name, "rejected", {"method": "none"}, None, 0, reason=reason)] if name else []
        with TemporaryDirectory() as name:
            material = Material(
                self.model, self.prepared, self._decider, self.budget.seed, Path(name), self.origin, self.job
            )
            measuring = Measuring(Maker(material), self._decider, self.main_metric, self.budget, self._part)
            if self.budget.search_s is None:
                return self._usual(graph, measuring, output)
            return self._search(graph, measuring, self.budget.search_s, output)

    def _usual(self, graph: onnx.ModelProto, measuring: Measuring, output: Path) -> list[Variant]:
        """The one recipe that suits the graph."""
        recipe = self._usual_recipe(graph, measuring)
        if recipe is None:
            return []
        if not recipe:
            reason = f"no smaller ensemble is surely within the budget on {len(self._decider.y)} validation rows"
            told = {"method": "truncate_trees", "note": NOTE}
            return [Variant("optimized", "rejected", told, None, 0, reason=reason)]
        return [self.variant(name_of(recipe), measuring.try_out(recipe), measuring.maker, output)]

    @staticmethod
    def _usual_recipe(graph: onnx.ModelProto, measuring: Measuring) -> Recipe | None:
        """The fewest trees within the budget, empty if all are needed; or how a network is quantized; or nothing."""
        if has_tree_order(graph):
            return next((one for one in shorter(graph) if measuring.loss(measuring.maker.make(one)).within), [])
        step = usual_precision(graph)
        return None if step is None else [step]

    def _search(self, graph: onnx.ModelProto, measuring: Measuring, limit_s: float, output: Path) -> list[Variant]:
        """The front of everything that was tried; if nothing holds the budget, what comes nearest, rejected."""
        begun, maker = time.monotonic(), measuring.maker
        space = Space.of(maker.material, graph)
        folder = None if self.job is None else self.job.checkpoint / _ROOM
        notebook = Notebook.open(folder, host_name(), hashlib.sha256(self.model).hexdigest())
        usual = self._usual_recipe(graph, measuring) or []
        from workers.compression.search import Search  # noqa: PLC0415 - optuna is loaded for those who search alone

        search = Search(measuring, space, notebook, limit_s, usual, self.job, self.span)
        tried = search.run() if space.choices else []
        maker.deadline = float("inf")  # what was measured by an earlier attempt is made again
        front, tried = self._made_again(tried, measuring)
        best = None if front else nearest(tried)
        shown = front if best is None else [_as_made(best, measuring)]
        names = names_of(shown)
        variants = [self.variant(n, one, maker, output) for n, one in zip(names, shown, strict=True)]
        variants = [self._with_memory(one, maker, output) for one in variants]
        kept = [one.name for one in variants if one.state == "accepted"]
        named = {key_of(one.recipe): name for name, one in zip(names, shown, strict=True)}
        self.report = {
            "state": "reached" if kept else "not reachable",
            "winner": next(iter(kept), None),
            "nearest": None if kept else next(iter(names), None),
            "stopped_by": [] if kept else _stopped_by(shown),
            "budget": self.budget.model_dump(mode="json"),
            "host": host_name(),
            "full": {"bytes": len(self.model)},
            "front": kept,
            "candidates": [_told(one, named.get(key_of(one.recipe))) for one in tried],
            "seconds": round(time.monotonic() - begun, 2),
        }
        return variants

    def _made_again(self, tried: list[Candidate], measuring: Measuring) -> tuple[list[Candidate], list[Candidate]]:
        """The front of what this attempt can make, and everything that was tried as it is now known."""
        made: dict[str, Candidate] = {}
        while True:
            tried = [made.get(key_of(one.recipe), one) for one in tried]
            front = front_of(tried, self.budget.objective)
            if not (new := [one for one in front if key_of(one.recipe) not in made]):
                return front, tried
            made |= {key_of(one.recipe): _as_made(one, measuring) for one in new}

    def anew(self, name: str, raw: bytes) -> Variant:
        """A variant that exists, measured on this host by the rows that decide; without a file."""
        with TemporaryDirectory() as folder:
            material = Material(self.model, self.prepared, self._decider, self.budget.seed, Path(folder), self.origin)
            measuring = Measuring(Maker(material), self._decider, self.main_metric, self.budget, self._part)
            found = measuring.measure([], raw)
        if found.failed is not None:
            return Variant(name, "rejected", {}, None, len(raw), reason=found.failed)
        state: Literal["accepted", "rejected"] = "rejected" if found.reason else "accepted"
        metrics = self.judge.metrics(raw)
        return Variant(name, state, drops(found), None, len(raw), metrics, dict(found.latency), found.reason)

    def variant(self, name: str, candidate: Candidate, maker: Maker, output: Path) -> Variant:
        """As it is kept; the metrics are those of the rows that are reported."""
        told = described(candidate.recipe, self.budget.seed, self._calibrated, self._trees(candidate, maker))
        told["budget"] = self.budget.model_dump(mode="json", exclude_none=True)
        if candidate.failed is not None:
            return Variant(name, "rejected", told, None, candidate.bytes, reason=candidate.failed)
        raw = maker.make(candidate.recipe)
        told |= drops(candidate)
        metrics, latency = self.judge.metrics(raw), dict(candidate.latency)
        if candidate.reason is not None:
            return Variant(name, "rejected", told, None, len(raw), metrics, latency, candidate.reason)
        path = f"variants/{name}/model.onnx"
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(raw)
        return Variant(name, "accepted", told, path, len(raw), metrics, latency)

    @property
    def _part(self) -> str:
        """Of the data set, where the rows that decide come from."""
        return "test" if self.origin is not None and self.origin.knows_validation else "validation"

    @property
    def _calibrated(self) -> int:
        return min(CALIBRATION_ROWS, len(self.prepared.split.train))

    def _trees(self, candidate: Candidate, maker: Maker) -> tuple[int, int] | None:
        """Left, of how many, where trees were left out."""
        at = next((i for i, step in enumerate(candidate.recipe) if step["step"] == "first_trees"), None)
        if at is None or candidate.failed is not None:
            return None
        before, after = (Forest.of(maker.graph(candidate.recipe[:end])).trees for end in (at, at + 1))
        return after, before

    def _with_memory(self, variant: Variant, maker: Maker, output: Path) -> Variant:
        """With what a kept one takes at the throughput batch, as a process of its own."""
        if variant.path is None:
            return variant
        judge = self._decider
        rows = take(judge.inputs, slice(0, min(usual_batch(judge.inputs), judge.answering.batch, len(judge.y))))
        peak = peak_bytes(output / variant.path, rows, judge.threads, maker.material.folder)
        return variant if peak is None else replace(variant, latency={**variant.latency, "peak_bytes": peak})


def _stopped_by(shown: Sequence[Candidate]) -> list[str]:
    """What keeps the nearest one out of the budget."""
    if not shown:
        return ["no recipe suits this graph, or none could be made"]
    return list(shown[0].stops) or [str(shown[0].reason)]


def _as_made(one: Candidate, measuring: Measuring) -> Candidate:
    """The same, or measured anew if this attempt makes another file, as a network does with other threads, or none."""
    try:
        raw = measuring.maker.make(one.recipe)
    except (Stopped, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - it says why when it is tried out
        return measuring.try_out(one.recipe)
    return one if hashlib.sha256(raw).hexdigest() == one.sha256 else measuring.measure(one.recipe, raw)


def _told(one: Candidate, name: str | None) -> dict[str, Any]:
    """A line of the report; `name` is that of the variant that it became."""
    state = "accepted" if one.accepted else "rejected"
    return {**one.to_json(), "variant": name, "state": state, "reason": one.reason}
