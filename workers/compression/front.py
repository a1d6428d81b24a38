"""Which candidates are kept: those that no other beats in everything, the best in what was asked for first."""

from collections.abc import Sequence

from app.specs.compression import Objective
from workers.compression.candidate import GAIN, Candidate


def front_of(candidates: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """The accepted ones that none of the others covers, the winner first: of the best the smallest, then by worth.

    One covers another if it is as good in size, rows a second, time for one row and loss, but for differences that
    measurements are not sure of. Of those that are alike in everything the simplest recipe stays: without a training,
    then with the fewest steps.
    """
    ranked = sorted(_uncovered(candidates), key=lambda one: -_worth(one, objective))
    if not ranked:
        return []
    alike = [one for one in ranked if _worth(one, objective) * GAIN >= _worth(ranked[0], objective)]
    winner = min(alike, key=lambda one: (one.bytes, -_worth(one, objective)))
    return [winner, *(one for one in ranked if one is not winner)]


def nearest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one that comes nearest to the budget, of those that could be made."""
    made = [one for one in candidates if one.failed is None]
    return min(made, key=lambda one: (not one.better, one.excess), default=None)


def _uncovered(candidates: Sequence[Candidate]) -> list[Candidate]:
    alone: list[Candidate] = []
    for one in sorted((one for one in candidates if one.accepted), key=lambda one: (one.trained, len(one.recipe))):
        if not any(one.covers(other) and other.covers(one) for other in alone):
            alone.append(one)
    kept: list[Candidate] = []
    while alone:  # what is covered by one that is itself covered may be better than the one that covers that
        best = [one for one in alone if not any(other.covers(one) for other in alone if other is not one)] or alone[:1]
        kept += best
        alone = [one for one in alone if not any(other.covers(one) for other in best)]
    return kept


def _worth(one: Candidate, objective: Objective) -> float:
    return {"speed": one.speed_up, "latency": one.quicker, "bytes": one.smaller}[objective]
