"""Measure a recipe on this host: what it loses on the rows that decide, how fast and how large it is."""

import hashlib
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from app.core.errors import AimassError, InvalidData
from app.specs.compression import CompressBudget
from workers.compression.candidate import Candidate
from workers.compression.memory import peak_bytes
from workers.compression.recipes import Maker, Recipe
from workers.context import Stopped
from workers.evaluation.device import CPU
from workers.evaluation.judge import Judge
from workers.evaluation.latency import Beside, Effort, Latency, by_turns, usual_batch
from workers.evaluation.loss import Loss, worst_loss
from workers.evaluation.metrics import baseline
from workers.learning import Array, take

_GLANCE = Effort(3, 2, 2.0)  # of what loses too much, whose speed decides nothing
_LOOK = Effort(9, 3, 6.0)  # of each candidate of a search
SURE = Effort(25, 5, 18.0)  # of what is about to be kept
_WORDS = 500


@dataclass(slots=True)
class Measuring:
    """The full model's answers to the rows that decide, beside which every other is set."""

    maker: Maker
    judge: Judge  # with the rows that decide
    main_metric: str
    budget: CompressBudget
    part: str = "validation"  # of the data set, where the rows come from
    answer_s: float = field(init=False)  # seconds that the full model takes for these rows
    _round_s: float = 0.0  # that a round of the last comparison took
    _full: Array = field(init=False)

    @property
    def confirm_s(self) -> float:
        """Seconds that a second measurement takes, by the last first one."""
        if not self._round_s:
            return SURE.most_s
        return max(min(SURE.rounds * self._round_s, SURE.most_s), SURE.least * self._round_s)

    def __post_init__(self) -> None:
        begun = time.monotonic()
        self._full = self.judge.answers(self.maker.material.model)
        self.answer_s = time.monotonic() - begun

    def check_readable(self) -> None:
        """InvalidData if the full model is surely worse than one answer for all rows: it is another data set's.

        What answers otherwise would then seem better, whatever it says. Of rare classes it may well know more than one
        answer does, and be right less often: its answers have to contradict the labels.
        """
        prepared, classes = self.maker.material.prepared, self._full.shape[-1]
        guess = baseline(self.judge.task, prepared.y[prepared.split.train], len(self.judge.y), classes)
        lost = worst_loss(self.judge, self.main_metric, self._full, guess, 0.0)
        contradicts = self.judge.score(self._full, names=("mcc",)).get("mcc", -1.0) < 0  # which values do not have
        if lost.at_most < 0 and contradicts:
            raise InvalidData.at(
                "mapping",
                msg=f"read so, the model is worse than one answer for all rows (its {lost.metric} by "
                f"{-lost.measured:.4g}): nothing can be lost; correct classes, columns, output, form or data set",
            )

    def try_out(self, recipe: Recipe, effort: Effort = _LOOK) -> Candidate:
        """Make it and measure it; what cannot be made, or does not run, says why."""
        try:
            raw = self.maker.make(recipe)
            if raw == self.maker.material.model:
                return Candidate(list(recipe), len(raw), failed="it changes nothing of this model")
            return self.measure(recipe, raw, effort)
        except (Stopped, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - of the quantizer: an imported graph may hold anything
            return Candidate(list(recipe), failed=why_not(error))

    def loss(self, raw: bytes) -> Loss:
        """On the rows that decide; infinite where answers are not finite."""
        answers = self.judge.answers(raw)
        if not np.isfinite(answers).all():
            return Loss(self.main_metric, float("inf"), float("inf"), self.budget.max_metric_drop)
        limits = self.budget.max_metric_drop, self.budget.max_error_increase, self.budget.max_accuracy_drop
        return worst_loss(self.judge, self.main_metric, self._full, answers, *limits)

    def measure(self, recipe: Recipe, raw: bytes, effort: Effort = _LOOK) -> Candidate:
        """Of a model that the recipe has made."""
        loss = self.loss(raw)
        if not np.isfinite(loss.measured):
            return Candidate(list(recipe), len(raw), failed="its answers are not finite")
        found = self._judged(recipe, raw, loss, self._beside(raw, effort if loss.within else _GLANCE))
        # Of what runs on a GPU a process' memory says little: most of it is CUDA's own.
        return self._with_memory(found, raw) if found.accepted and self.judge.device == CPU else found

    def confirm(self, one: Candidate) -> Candidate:
        """Measure its speed again and for longer; the very same file loses what it has lost before."""
        raw = self.maker.make(one.recipe)
        again = self._judged(one.recipe, raw, Loss(**one.loss), self._beside(raw, SURE))
        peak = {name: value for name, value in one.latency.items() if name == "peak_bytes"}
        first = {"speed_up": one.speed_up, "quicker": one.quicker, "latency": one.latency}
        stops = [f"measured again, {why}" for why in again.stops]
        return replace(again, latency={**again.latency, **peak}, first=first, stops=stops)

    def _with_memory(self, found: Candidate, raw: bytes) -> Candidate:
        """With what it takes at the throughput batch, as a process of its own."""
        judge, folder = self.judge, self.maker.material.folder
        path = folder / "measured.onnx"
        path.write_bytes(raw)
        rows = take(judge.inputs, slice(0, min(self._batch, len(judge.y))))
        peak = peak_bytes(path, rows, judge.threads, folder)
        path.unlink()
        return found if peak is None else replace(found, latency={**found.latency, "peak_bytes": peak})

    @property
    def _batch(self) -> int:
        """The throughput batch."""
        return min(usual_batch(self.judge.inputs), self.judge.answering.batch)

    def _beside(self, raw: bytes, effort: Effort) -> Beside:
        """By turns with the full model."""
        judge, begun = self.judge, time.monotonic()
        found = by_turns(
            (self.maker.material.model, raw), judge.inputs, judge.threads, self._batch, effort, judge.device
        )
        self._round_s = (time.monotonic() - begun) / found.rounds
        return found

    def _judged(self, recipe: Recipe, raw: bytes, loss: Loss, found: Beside) -> Candidate:
        faster = found.quicker if self.budget.objective == "latency" else found.speed_up
        stops, excess = self._stops(loss, len(raw), found.latency, faster)
        smaller = len(self.maker.material.model) / len(raw)
        return Candidate(
            list(recipe), len(raw), hashlib.sha256(raw).hexdigest(), asdict(loss),
            {**found.latency.to_json(), "speed_up": round(found.speed_up, 4)},
            round(smaller, 4), round(found.speed_up, 4), round(found.quicker, 4), round(excess, 6), stops,
        )  # fmt: skip

    def _stops(self, loss: Loss, size: int, latency: Latency, faster: float) -> tuple[list[str], float]:
        """What is beyond the budget, in words, and how far all of it together."""
        budget, stops, excess = self.budget, [], 0.0
        if not loss.within:
            stops.append(
                f"{loss.metric} is worse by {loss.measured:.4g} on {len(self.judge.y)} {self.part} rows, "
                f"by up to {loss.at_most:.4g} on others, over the budget of {loss.allowed:g}"
            )
            excess += (loss.at_most - loss.allowed) / max(loss.allowed, 1e-3)
        limits: list[tuple[float | None, float, str]] = [
            (budget.max_bytes, size, f"it has {size:,} bytes, over max_bytes = {budget.max_bytes}"),
            (
                budget.max_p95_ms, latency.p95_ms,
                f"one row takes {latency.p95_ms:.4g} ms at p95, over max_p95_ms = {budget.max_p95_ms}",
            ),
            (
                budget.min_speedup and 1 / budget.min_speedup, 1 / faster,
                f"it is {faster:.2f} times as fast, under min_speedup = {budget.min_speedup}",
            ),
        ]  # fmt: skip
        for limit, found, words in limits:
            if limit is not None and found > limit:
                stops.append(words)
                excess += found / limit - 1
        return stops, excess


def why_not(error: Exception) -> str:
    """What a person is told of a recipe that cannot be made."""
    if isinstance(error, AimassError):
        return str(error)
    words = " ".join(f"{type(error).__name__}: {error}".split())[:_WORDS]
    return f"it cannot be made: {words}"


def drops(candidate: Candidate) -> dict[str, Any]:
    """What a variant's recipe says of its measurement."""
    loss = candidate.loss
    return {
        "speed_up": round(candidate.speed_up, 3), "metric_drop": round(loss["measured"], 6),
        "metric_drop_at_most": round(loss["at_most"], 6),
    }  # fmt: skip
