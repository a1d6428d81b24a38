"""The closer look at a freshly trained model: intervals, curves, slices, verdict, size; as JSON, plots and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.core.version_folder import EVALUATION, PAGE, PLOTS
from workers.data.prepare import Prepared
from workers.evaluation.complexity import complexity
from workers.evaluation.curves import curves
from workers.evaluation.judge import Judge
from workers.evaluation.page import card_page
from workers.evaluation.report import intervals_json, intervals_of
from workers.evaluation.slices import judge_slices
from workers.evaluation.verdict import judge_fit
from workers.export.version_files import write_json
from workers.families.base import Fitted, HasEvidence
from workers.features.recipe import FittedWithRecipe
from workers.jobs.refits import Refits
from workers.learning import Array

_VERSION = 1
_POINTS = 200  # of a curve


@dataclass(frozen=True, slots=True)
class CloserLook:
    """What goes into the model card beside the metrics, and `evaluation.json`, which has it all."""

    card: dict[str, Any]
    evaluation: dict[str, Any]

    def write(self, folder: Path, card: Mapping[str, Any], *, plots: bool) -> None:
        """`evaluation.json`, `card.html` of the whole card, and, if wanted, `plots/*.svg` and `*.png`."""
        write_json(folder / EVALUATION, self.evaluation)
        drawn = draw_if(self.evaluation, wanted=plots)
        (folder / PLOTS).mkdir(exist_ok=True)
        for name, plot in drawn.items():
            (folder / PLOTS / name).write_bytes(plot)
        (folder / PAGE).write_text(card_page(card, self.evaluation, drawn), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Judged:
    """A model and what was measured of it.

    `judge` has the test rows, `answers` are the model's to them, `metrics` are of each part and of the baseline.
    """

    model: bytes
    prepared: Prepared
    judge: Judge
    answers: Array
    main: str
    metrics: dict[str, dict[str, float]]
    evidence: dict[str, Any] | None = None


def look_closer(judged: Judged, points: Mapping[str, Sequence[tuple[int, float]]], refits: Refits) -> CloserLook:
    """Everything but the files; what has to be warned of is added to the notes of the preparation.

    Args:
        judged: the model.
        points: of the live curves of its fit.
        refits: the further fits that were asked for, done.
    """
    prepared, judge, main = judged.prepared, judged.judge, judged.main
    intervals = intervals_of(judge, judged.answers)
    test = {name: labels[prepared.split.test] for name, labels in prepared.closer.slices.items()}
    slices, warnings = judge_slices(judge, judged.answers, test, main)
    prepared.notes.warnings += warnings
    card = {
        "intervals": intervals_json(intervals),
        "verdict": judge_fit(main, judged.metrics, intervals),
        "complexity": complexity(judged.model),
        "evidence": judged.evidence,
        "cross_validation": refits.cross_validation(),
        "learning_curve": refits.learning_curve(main, judged.metrics),
        "slices": slices,
    }
    evaluation = {
        "version": _VERSION, "main_metric": main, "rows": prepared.split.sizes(), "metrics": judged.metrics, **card,
        "curves": curves(
            judge.task, judge.y, judged.answers, judge.rule, prepared.signature.classes, _POINTS
        ),
        "training": {name: _thinned(steps) for name, steps in points.items() if len(steps) > 1},
    }  # fmt: skip
    return CloserLook(card, evaluation)


def evidence_of(fitted: Fitted) -> dict[str, Any] | None:
    """What the likelihood of training rows says of a model, as its family fitted it, JSON-ready; None without one."""
    own = fitted.fitted if isinstance(fitted, FittedWithRecipe) else fitted
    found = own.evidence() if isinstance(own, HasEvidence) else None
    return None if found is None else found.to_json()


def draw_if(evaluation: Mapping[str, Any], *, wanted: bool) -> dict[str, bytes]:
    """Plots by file name, of those who want them; see `workers.evaluation.plots.draw`."""
    return _draw(evaluation) if wanted else {}


def _draw(evaluation: Mapping[str, Any]) -> dict[str, bytes]:
    from workers.evaluation.plots import draw  # noqa: PLC0415 - matplotlib is loaded for those who want plots alone

    return draw(evaluation)


def _thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    some = np.unique(np.linspace(0, len(points) - 1, min(len(points), _POINTS)).round().astype(int))
    return [[points[at][0], points[at][1]] for at in some if np.isfinite(points[at][1])]
