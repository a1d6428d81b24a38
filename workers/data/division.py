"""Ways to cut rows in two and into folds: at random, in proportion to classes, by whole groups, along time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    TimeSeriesSplit,
    train_test_split,
)

from app.core.errors import InvalidData, InvalidInput
from workers.learning import Array

Rows = npt.NDArray[np.int64]
_GRAIN = 20  # folds of which the parts of a division by groups are made up
_TRIES = 10  # orders in which grains are taken: the large ones must not always be left to training
_MANY_GROUPS = 1000  # from here on chance balances the parts, and weighing every group would take minutes


class Divider(Protocol):
    """Divides rows, given and returned as sorted positions in the data. The same rows are always divided alike."""

    def cut(self, rows: Rows, share: float) -> tuple[Rows, Rows]:
        """Keep some rows and cut about `share` of them off: all of them where they cannot be divided."""

    def folds(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
        """The other rows and the held out ones for each fold. InvalidData where there cannot be so many."""


@dataclass(frozen=True, slots=True)
class Shuffled:
    """At random; with class indices `strata` [N], in proportion to them."""

    strata: Array | None
    seed: int

    def cut(self, rows: Rows, share: float) -> tuple[Rows, Rows]:
        """Of a share that rounds to no row, one row is cut off; of one that rounds to all, one row is kept."""
        if len(rows) < 2:  # noqa: PLR2004 - a row cannot be divided
            return rows[:0], rows
        held = min(max(1, round(len(rows) * share)), len(rows) - 1)
        strata = None if self.strata is None else group_rare(self.strata[rows], min(held, len(rows) - held))
        kept, cut = train_test_split(rows, test_size=held, random_state=self.seed, stratify=strata)
        return np.sort(kept), np.sort(cut)

    def folds(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
        """Of equal size, give or take a row."""
        if len(rows) < 2 * count:
            raise _too_many_folds(count, f"{2 * count} rows", len(rows))
        strata = None if self.strata is None else group_rare(self.strata[rows], len(rows), count)
        make = KFold if strata is None else StratifiedKFold
        for rest, held in make(count, shuffle=True, random_state=self.seed).split(rows, strata):
            yield rows[rest], rows[held]


@dataclass(frozen=True, slots=True)
class Grouped:
    """By whole groups `groups` [N], in proportion to the class indices `strata` [N] as well as groups allow."""

    groups: Array
    strata: Array | None
    seed: int

    def cut(self, rows: Rows, share: float) -> tuple[Rows, Rows]:
        """Where there are three groups or more, two are kept, so that the rest can be cut again."""
        count = len(np.unique(self.groups[rows]))
        if count > _MANY_GROUPS:
            shuffle = GroupShuffleSplit(1, test_size=share, random_state=self.seed)
            kept, cut = next(shuffle.split(rows, groups=self.groups[rows]))
            return rows[kept], rows[cut]
        if count == 1:
            return rows[:0], rows
        grains = [held for _, held in self._balanced(rows, min(count, _GRAIN))]
        sizes = np.asarray([len(held) for held in grains])
        rng, most = np.random.default_rng(self.seed), max(1, len(grains) - 2)
        tries = (_nearest(sizes, rng.permutation(len(grains)), share * len(rows), most) for _ in range(_TRIES))
        chosen = min(tries, key=lambda found: found[0])[1]
        cut = np.sort(np.concatenate([grains[at] for at in chosen]))
        return np.setdiff1d(rows, cut, assume_unique=True), cut

    def folds(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
        """Of about equal size, as groups allow."""
        there = len(np.unique(self.groups[rows]))
        if there < count:
            raise _too_many_folds(count, f"{count} groups", there)
        if there <= _MANY_GROUPS:
            yield from self._balanced(rows, count)
            return
        for rest, held in GroupKFold(count, shuffle=True, random_state=self.seed).split(rows, groups=self.groups[rows]):
            yield rows[rest], rows[held]

    def fold_numbers(self, rows: Array, count: int) -> Rows:
        """The fold of each of these rows, in their order; fewer folds where there are fewer groups.

        InvalidData of a single group.
        """
        there = len(np.unique(self.groups[rows]))
        if there == 1:
            raise InvalidData.at("split", "group", msg="the rows that are not of the test part are of a single group")
        numbers = np.zeros(len(rows), np.int64)
        for number, (_, held) in enumerate(self.folds(np.sort(rows), min(count, there))):
            numbers[np.isin(rows, held)] = number
        return numbers

    def _balanced(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
        strata = None if self.strata is None else group_rare(self.strata[rows], len(rows), count)
        strata = np.zeros(len(rows), np.int64) if strata is None else strata
        splitter = StratifiedGroupKFold(count, shuffle=True, random_state=self.seed)
        for rest, held in splitter.split(rows, strata, self.groups[rows]):
            yield rows[rest], rows[held]


@dataclass(frozen=True, slots=True)
class Ordered:
    """Along `times` [N], whose order is that of time. What is cut off is newer than all that is kept."""

    times: Array

    def cut(self, rows: Rows, share: float) -> tuple[Rows, Rows]:
        """Where there are three times or more, two are kept, so that the rest can be cut again."""
        _, at, counts = np.unique(self.times[rows], return_inverse=True, return_counts=True)
        before = np.cumsum(counts)[:-1]  # rows up to each place where a cut can be
        if not len(before):
            return rows[:0], rows
        first = int(len(before) > 1)
        last = first + int(np.abs(before[first:] - (1 - share) * len(rows)).argmin())
        late = at > last
        return rows[~late], rows[late]

    def folds(self, rows: Rows, count: int) -> Iterator[tuple[Rows, Rows]]:
        """Each fold is newer than the other rows, which are all that came before it."""
        times, at = np.unique(self.times[rows], return_inverse=True)
        if len(times) < 2 * (count + 1):
            raise _too_many_folds(count, f"{2 * (count + 1)} different times", len(times))
        for rest, held in TimeSeriesSplit(count).split(times):
            yield rows[at <= rest[-1]], rows[(at >= held[0]) & (at <= held[-1])]


def _nearest(sizes: Array, order: Array, wanted: float, most: int) -> tuple[float, Array]:
    """How far the first few in `order`, at most `most`, are from so many rows at best, and which they are."""
    misses = np.abs(np.cumsum(sizes[order])[:most] - wanted)
    some = int(misses.argmin())
    return float(misses[some]), order[: some + 1]


def group_rare(labels: Array, most: int, least: int = 2) -> npt.NDArray[np.int64] | None:
    """Strata to divide rows by: their labels, of which those that are too rare are one stratum together.

    Args:
        labels: class indices [N].
        most: strata that there may be.
        least: rows that each must have.

    Returns:
        Indices [N]; None where no class is frequent enough.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    common = [k for k in ranked if counts[k] >= least]
    if len(common) < len(ranked) or len(common) > most:
        common = common[: most - 1]
    strata = np.full(len(counts), len(common))
    strata[common] = np.arange(len(common))
    rest = strata[codes] == len(common)
    if 0 < rest.sum() < least and common:  # a single row, say, cannot be on both sides
        strata[strata == len(common)] = len(common) - 1
    return strata[codes] if common else None


def _too_many_folds(count: int, needed: str, there: int) -> InvalidInput:
    msg = f"{count} folds need {needed} that are not of the test part, and there are {there}; ask for fewer folds"
    return InvalidData.at("evaluation", "folds", msg=msg)
