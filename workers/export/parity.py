"""The parity gate: an exported model must answer as the trained one does, or the job fails."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.core.errors import ParityFailed
from workers.export.runtime import open_session, predict
from workers.learning import PLAIN, Inputs, Rule, rows_of, take

MIN_ROWS = 1000
BATCHES = (1, 7)
TOLERANCE = 1e-4  # of probabilities; of values relative to their spread
_HALF = 0.5
_SINGLES = 64  # rows that are also sent one by one
Predict = Callable[[Inputs], npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Parity:
    """What the gate measured."""

    rows: int
    batches: tuple[int, ...]
    max_difference: float
    tolerance: float
    label_flips: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def check_parity(
    model: bytes, trained: Predict, inputs: Inputs, task: str, threads: int, spread: float = 0.0, rule: Rule = PLAIN
) -> Parity:
    """Compare on real rows, and on the same rows with values missing and categories unseen.

    Args:
        model: serialised ONNX.
        trained: the trained model, from graph inputs to probabilities [N, K], or values [N] or, with intervals, [N, 3].
        inputs: real rows; all of them are used.
        task: what was learned.
        threads: of the ONNX session.
        spread: of a regression's target, for a model that answers nearly the same to all rows.
        rule: which class is told.

    Raises:
        ParityFailed: a difference is above the tolerance, or a label changed.
    """
    session = open_session(model, threads)
    hard = _with_gaps(inputs)
    rows = rows_of(inputs)
    differences, flips = [], 0
    for sample in (inputs, hard) if hard is not None else (inputs,):
        expected = trained(sample)
        for batch in (*BATCHES, rows):
            count = min(rows, _SINGLES * batch) if batch < rows else rows
            actual = predict(session, take(sample, slice(0, count)), batch)
            difference, flipped = _compare(expected[:count], actual, task, spread, rule)
            differences.append(difference)
            flips = max(flips, flipped)
    result = Parity(rows, (*BATCHES, rows), max(differences), TOLERANCE, flips)
    if not result.max_difference <= TOLERANCE or flips:
        raise ParityFailed(
            f"the exported model differs by {result.max_difference:.3g} (tolerance {TOLERANCE:g}) with {flips} changed "
            f"labels in {rows} rows"
        )
    return result


def _compare(
    expected: npt.NDArray[Any], actual: npt.NDArray[Any], task: str, spread: float, rule: Rule
) -> tuple[float, int]:
    """Largest difference and changed labels; infinite for another shape or a value that is not finite."""
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return float("inf"), 0
    gap = np.abs(expected.astype(np.float64) - actual)
    if task == "regression":
        scale = max(float(np.std(expected)), spread, float(np.abs(expected).max()) * 1e-3) or 1.0
        return float(gap.max()) / scale, 0
    if task == "multilabel":
        told = (expected >= _HALF) != (actual >= _HALF)
        flips = (told & (np.abs(expected - _HALF) > TOLERANCE)).any(axis=1)
        return float(gap.max()), int(flips.sum())
    if rule.threshold is None:
        top = np.sort(expected, axis=1)
        margin = top[:, -1] - top[:, -2]
    else:
        margin = np.abs(expected[:, rule.positive] - rule.threshold)
    flips = (rule.labels(expected) != rule.labels(actual)) & (margin > TOLERANCE)  # within it either label is right
    return float(gap.max()), int(flips.sum())


def _with_gaps(inputs: Inputs) -> Mapping[str, npt.NDArray[Any]] | None:
    """The rows with about a tenth of the cells missing or, for categories, unseen; None for pictures."""
    rng = np.random.default_rng(0)
    changed = {}
    for name, value in inputs.items():
        if value.dtype == np.uint8:
            return None
        copy, draw = value.copy(), rng.random(value.shape)
        copy[draw < 0.1] = np.nan if value.dtype == np.float32 else ""  # noqa: PLR2004 - a tenth
        if value.dtype == object:
            copy[draw > 0.95] = "\N{REPLACEMENT CHARACTER} unseen"  # noqa: PLR2004 - a twentieth
        changed[name] = copy
    return changed
