"""Make variants of a model within a budget, each measured on this host, and keep those that are worth it."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import onnx

from app.core.host import host_name
from app.specs.compression import CompressBudget
from workers.compression.candidate import Candidate, Notebook
from workers.compression.front import nearest
from workers.compression.graphs import TREES, operators_of
from workers.compression.int8 import CALIBRATION_ROWS
from workers.compression.material import Material, Origin
from workers.compression.measuring import SURE, Measuring, drops
from workers.compression.naming import described, free_name, name_of, names_of
from workers.compression.recipes import Maker, Recipe, key_of
from workers.compression.space import Space, shorter, usual_precision
from workers.compression.sparsity import PACKED_PER_S, SHARES, sparse_sizes
from workers.compression.trees import NOTE, Forest, has_tree_order
from workers.context import JobContext, Stopped
from workers.data.prepare import Prepared
from workers.evaluation.device import CPU
from workers.evaluation.judge import Judge
from workers.evaluation.variant import Variant

_LEAST_ROWS = 10  # that decide
_ROOM, _TAUGHT = "compression", "taught"  # within a checkpoint, and within that
_ASIDE = 0.05  # of the time to search, for numbers that no variant comes of


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
        self.given: Sequence[Recipe] = ()  # alone are tried, if there are any
        self.taken: Mapping[str, str] = {}  # digests of the variants that the version has already, by name
        self.report: dict[str, Any] | None = None  # of everything that was measured, after `run`
        inputs, y = prepared.part("validation")
        groups = prepared.closer.groups
        groups = None if groups is None else groups[prepared.split.validation]
        self._decider = replace(judge, inputs=inputs, y=y, groups=groups)
        if origin is not None and origin.knows_validation:
            half = judge.dealt(2, budget.seed) == 0
            self._decider, self.judge = judge.of(half), judge.of(~half)

    def run(self, output: Path) -> list[Variant]:
        """What suits the graph; an accepted variant is written to `output/variants/<name>/model.onnx`."""
        begun, graph = time.monotonic(), onnx.load_from_string(self.model)
        if (rows := len(self._decider.y)) < _LEAST_ROWS:
            reason = f"{rows} validation rows say nothing of others; at least {_LEAST_ROWS} are needed"
            usual = usual_precision(graph, half=self._half)
            name = "optimized" if TREES in operators_of(graph) else name_of([usual]) if usual else ""
            return self._nothing(begun, name, {"method": "none"}, reason)
        with self._aside() as name:
            measuring = self._measuring(Path(name), self.job)
            if self.budget.search_s is None and not self.given:
                return self._usual(graph, measuring, output, begun)
            return self._search(graph, measuring, output)

    def _aside(self) -> TemporaryDirectory[str]:
        """A folder for files of this run: graphs, and rows of the data set."""
        return TemporaryDirectory(dir=None if self.job is None else self.job.folder)

    def _measuring(self, folder: Path, job: JobContext | None = None) -> Measuring:
        """By the rows that decide. InvalidData if an imported model is not understood by its mapping."""
        material = Material(self.model, self.prepared, self._decider, self.budget.seed, folder, self.origin, job)
        measuring = Measuring(Maker(material), self._decider, self.main_metric, self.budget, self._part)
        if self.origin is None:
            measuring.check_readable()
        return measuring

    def _usual(self, graph: onnx.ModelProto, measuring: Measuring, output: Path, begun: float) -> list[Variant]:
        """The one recipe that suits the graph."""
        recipe = self._usual_recipe(graph, measuring)
        if not recipe:
            reason = f"no smaller ensemble is surely within the budget on {len(self._decider.y)} validation rows"
            name = "" if recipe is None else "optimized"
            return self._nothing(begun, name, {"method": "truncate_trees", "note": NOTE}, reason)
        found = measuring.try_out(recipe, SURE)
        variants, names = self._variants([found], measuring.maker, output)
        self._tell(begun, [found], [found], names)
        return variants

    def _nothing(self, begun: float, name: str, told: dict[str, Any], reason: str) -> list[Variant]:
        """Where nothing can be tried: why, under the name that a variant would have if there is one for this graph."""
        names = [free_name(name, self.taken)] if name else []
        self._tell(begun, [], [], names, [reason] if name else None)
        return [Variant(name, "rejected", told, None, 0, reason=reason) for name in names]

    def _usual_recipe(self, graph: onnx.ModelProto, measuring: Measuring) -> Recipe | None:
        """The fewest trees within the budget, empty if all are needed; or a network's precision; or nothing."""
        if has_tree_order(graph):
            return next((one for one in shorter(graph) if measuring.loss(measuring.maker.make(one)).within), [])
        step = usual_precision(graph, half=self._half)
        return None if step is None else [step]

    def _search(self, graph: onnx.ModelProto, measuring: Measuring, output: Path) -> list[Variant]:
        """The front of everything that was tried; if nothing holds the budget, what comes nearest, rejected."""
        begun, maker = time.monotonic(), measuring.maker
        folder = None if self.job is None else self.job.checkpoint / _ROOM
        maker.taught = folder and folder / _TAUGHT
        notebook = Notebook.open(folder, self._host, hashlib.sha256(self.model).hexdigest())
        from workers.compression.search import Search  # noqa: PLC0415 - optuna is loaded for those who search alone

        space = Space({}, [], trees=False) if self.given else Space.of(maker.material, graph, half=self._half)
        limit_s = (self.budget.time_limit_s if self.given else self.budget.search_s) or float("inf")
        search = Search(measuring, space, notebook, limit_s, given=self.given, job=self.job, span=self.span)
        if not notebook.searched and (space.choices or self.given):
            search.usual = [] if self.given else self._usual_recipe(graph, measuring) or []
            search.run()
        maker.deadline = float("inf")  # what was measured by an earlier attempt is made again
        if self.job is not None:
            self.job.progress(self.span[1], "measuring again what is about to be kept")
        front, known = search.confirming.settle(), search.confirming.known()
        if not front and (best := nearest(known)) is not None:
            front, known = [search.confirming.settle_one(best)], search.confirming.known()
        variants, names = self._variants(front, maker, output)
        unstructured = [] if space.trees or self.given else self._unstructured(measuring, limit_s)
        self._tell(begun, known, front, names, unstructured=unstructured)
        return variants

    def _unstructured(self, measuring: Measuring, limit_s: float) -> list[dict[str, Any]]:
        """What leaving out single weights would bring, if that is known in a moment."""
        seconds = len(SHARES) * measuring.answer_s + (1 + len(SHARES)) * len(self.model) / PACKED_PER_S
        if seconds > _ASIDE * limit_s:
            return []
        found = []
        for one in sparse_sizes(measuring):
            if self.job is not None and self.job.should_stop():
                raise Stopped
            found.append(one)
        return found

    def _variants(self, shown: Sequence[Candidate], maker: Maker, output: Path) -> tuple[list[Variant], list[str]]:
        """As they are kept, and their names, which are those of no other file of the version."""
        names = names_of(shown, self.taken)
        return [self.variant(name, one, maker, output) for name, one in zip(names, shown, strict=True)], names

    def _tell(
        self, begun: float, tried: Sequence[Candidate], shown: Sequence[Candidate], names: Sequence[str],
        stopped_by: list[str] | None = None, unstructured: Sequence[Mapping[str, Any]] = (),
    ) -> None:  # fmt: skip
        """Write the report; `shown` and `names` are what became a variant, accepted or not."""
        kept = [name for name, one in zip(names, shown, strict=False) if one.accepted]
        named = {key_of(one.recipe): name for name, one in zip(names, shown, strict=False)}
        self.report = {
            "state": "reached" if kept else "not reachable",
            "winner": next(iter(kept), None),
            "nearest": None if kept else next(iter(names), None),
            "stopped_by": [] if kept else stopped_by or _stopped_by(shown),
            "budget": self.budget.model_dump(mode="json"),
            "host": self._host,
            "part": self._part,
            "full": {"bytes": len(self.model)},
            "front": kept,
            "candidates": [_told(one, named.get(key_of(one.recipe))) for one in tried],
            "unstructured": list(unstructured),
            "seconds": round(time.monotonic() - begun, 2),
        }

    def anew(self, name: str, raw: bytes) -> Variant:
        """A variant that exists, measured on this host by the rows that decide; without a file."""
        with self._aside() as folder:
            found = self._measuring(Path(folder)).measure([], raw, SURE)
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
    def _host(self) -> str:
        """What is measured."""
        return host_name(self.judge.device)

    @property
    def _half(self) -> bool:
        """Whether half precision is worth a try: GPUs have kernels for it, processors would only cast."""
        return self.judge.device != CPU

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


def _stopped_by(shown: Sequence[Candidate]) -> list[str]:
    """What keeps the nearest one out of the budget."""
    if not shown:
        return ["no recipe suits this graph, or none could be made"]
    return list(shown[0].stops) or [str(shown[0].reason)]


def _told(one: Candidate, name: str | None) -> dict[str, Any]:
    """A line of the report; `name` is that of the variant that it became."""
    state = "accepted" if one.accepted else "rejected"
    return {**one.to_json(), "variant": name, "state": state, "reason": one.reason}
