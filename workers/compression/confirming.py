"""Measure a second time what is about to be kept: the best of many short measurements is also the luckiest."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from workers.compression.candidate import Candidate, Notebook
from workers.compression.front import front_of
from workers.compression.measuring import Measuring
from workers.compression.recipes import Recipe, key_of
from workers.context import JobContext, Stopped
from workers.evaluation.steps import in_words

_SHARE = 0.25  # of the time to search, that second measurements may take


@dataclass(slots=True)
class Confirming:
    """Makes a front of candidates whose second measurement, beside the full model and for longer, holds the budget.

    The time for it is a part of the time to search: a search ends so much earlier as the front at hand would take, a
    quarter of its time at most. What is measured a second time is kept in the notebook, and not measured a third time.
    """

    measuring: Measuring
    notebook: Notebook
    limit_s: float
    job: JobContext | None = None
    _begun: float = field(init=False)
    _settled: dict[str, Candidate] = field(default_factory=dict)  # as this attempt makes them

    def __post_init__(self) -> None:
        self._begun = time.monotonic() - self.notebook.spent_s

    @property
    def spent_s(self) -> float:
        """By this attempt and earlier ones."""
        return time.monotonic() - self._begun

    @property
    def kept_s(self) -> float:
        """Seconds of the time to search that are kept back for the front at hand."""
        waiting = [one for one in self._front(self.notebook.all()) if not one.first]
        return min(_SHARE * self.limit_s, len(waiting) * self.measuring.confirm_s)

    @property
    def search_ends_in_s(self) -> float:
        """0 or less when nothing more is to be tried."""
        return self.limit_s - self.kept_s - self.spent_s

    def one_holds(self, accepts: Callable[[Candidate], bool]) -> bool:
        """Whether, of those that `accepts` names, one holds the budget when it is measured again; the best first."""
        while (front := self._front([one for one in self.known() if accepts(one)])) and self.search_ends_in_s > 0:
            if key_of(front[0].recipe) in self._settled:
                return True
            self._settle(front[0])
            self.measuring.maker.forget()
        return False

    def settle(self) -> list[Candidate]:
        """The front of what was confirmed, the winner first; empty if nothing holds the budget a second time.

        While there is none, the next best ones have as much time again.
        """
        left, spare = max(self.limit_s - self.spent_s, self.kept_s), _SHARE * self.limit_s
        while waiting := self._waiting():
            known = any(one.accepted for one in self._settled.values())
            if waiting[0].first or not self._settled or left > (0 if known else -spare):
                left -= self._settle(waiting[0])
            else:
                for one in waiting:
                    self._settled[key_of(one.recipe)] = _late(one)
        return self._front(self.known())

    def known(self) -> list[Candidate]:
        """Everything that was measured, as it is now known."""
        return [self._settled.get(key_of(one.recipe), one) for one in self.notebook.all()]

    def _waiting(self) -> list[Candidate]:
        """Of the front those that this attempt has not made yet."""
        return [one for one in self._front(self.known()) if key_of(one.recipe) not in self._settled]

    def _front(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        return front_of(candidates, self.measuring.budget.objective)

    def settle_one(self, one: Candidate) -> Candidate:
        """As this attempt makes it; if it holds the budget, it was measured a second time."""
        self._settle(one)
        return self._settled[key_of(one.recipe)]

    def _settle(self, one: Candidate) -> float:
        """Make it, and measure it again unless that was done; the seconds that the measurement took."""
        if self.job is not None and self.job.should_stop():
            raise Stopped
        found, seconds = as_made(one, self.measuring), 0.0
        if found.accepted and not found.first:
            begun = time.monotonic()
            found = self.measuring.confirm(found)
            seconds = time.monotonic() - begun
        self._settled[key_of(one.recipe)] = found
        self.notebook.add(found, self.spent_s)
        self._tell(found)
        return seconds

    def _tell(self, found: Candidate) -> None:
        if self.job is None:
            return
        if self.notebook.path is not None:
            self.job.checkpointed()
        if not found.first:
            return
        before, now = found.first["speed_up"], found.speed_up
        told = f"measured {in_words(found.recipe)} again: {now:.2f} times the rows a second, at first {before:.2f}"
        self.job.log("; ".join([told, *filter(None, [found.reason])]))


def as_made(one: Candidate, measuring: Measuring) -> Candidate:
    """The same, or measured anew if this attempt makes another file, as a network does with other threads, or none."""
    recipe: Recipe = one.recipe
    try:
        raw = measuring.maker.make(recipe)
    except (Stopped, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - it says why when it is tried out
        return measuring.try_out(recipe)
    return one if hashlib.sha256(raw).hexdigest() == one.sha256 else measuring.measure(recipe, raw)


def _late(one: Candidate) -> Candidate:
    return replace(one, stops=["it was not measured a second time before the time was up"])
