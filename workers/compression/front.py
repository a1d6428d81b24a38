"""Which candidates are kept: those that no other beats in everything, the best in what was asked for first."""

from collections.abc import Sequence

from app.specs.compression import Objective
from workers.compression.candidate import GAIN, Candidate


def front_of(candidates: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """The accepted ones that none of the others covers, the winner first.

    One covers another if it is as good in size, rows a second, time for one row and loss, but for differences that
    measurements are not sure of.
    """
    ranked = sorted((one for one in candidates if one.accepted), key=lambda one: -_worth(one, objective))
    if not ranked:
        return []
    best = _worth(ranked[0], objective)
    alike = [one for one in ranked if _worth(one, objective) * GAIN >= best]
    winner = min(alike, key=lambda one: (one.bytes, -_worth(one, objective)))
    kept = [winner]
    for one in ranked:
        if not any(other.covers(one) for other in kept):
            kept.append(one)
    return kept


def nearest(candidates: Sequence[Candidate]) -> Candidate | None:
    """The one that comes nearest to the budget, of those that could be made."""
    made = [one for one in candidates if one.failed is None]
    return min(made, key=lambda one: (not one.better, one.excess), default=None)


def _worth(one: Candidate, objective: Objective) -> float:
    return {"speed": one.speed_up, "latency": one.quicker, "bytes": one.smaller}[objective]
