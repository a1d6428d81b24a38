"""Is a batch answered as its rows are? Only then may requests of strangers share a run."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from app.core.errors import InvalidData
from app.core.signature import Datatype
from workers.intake.one_run import Arrays, ended_after, run, same
from workers.intake.rows import SMALL, Levels, rows

# The levels of a batch's rows. A model that refuses large values, as one with a vocabulary does, is tried with smaller
# ones; the most telling batches come first, since a slow model is not run with all of them.
_BATCHES: tuple[Levels, ...] = ((3, 0, 2, 1), (2, 0, 1, 2), (3, 3, 3, 3), (2, 2, 2, 2))
_TIME_S = 30.0  # after which no further batch is begun
_RUN_S = 10.0  # of one run, at least
_SLOWER = 12.0  # a batch of large values than a row of small ones: the model may loop over them
_MOST_APART = 8  # inputs that are varied by themselves, when all together are refused
_MOST_TOGETHER = 23  # rows in one batch, in the end
_MOST_ELEMENTS = 1 << 18  # of one of them and its answers: a picture is kept, larger rows would add up
_FIRST_S = 3600.0  # of a row of small values; the job's own limit comes first
_FLOATS = ("FP16", "BF16", "FP32", "FP64")
_NO_ROWS = "an output does not have a row for each row of a batch"
_OTHERWISE = "a row is answered otherwise in a batch than alone"


class _Refused(Exception):
    """The model does not take these values, which then tell nothing."""


class _Overdue(Exception):
    """A run was ended."""


@dataclass(slots=True)
class _Probe:
    session: ort.InferenceSession
    run_s: float = _FIRST_S
    together: int = _MOST_TOGETHER
    seen: list[tuple[Arrays, Arrays]] = field(default_factory=list)  # small rows, and the answers to each alone

    def answers(self, batch: Arrays) -> Arrays:
        """What the model answers, alone or in a batch."""
        with ended_after(self.run_s) as options:
            try:
                return run(self.session, batch, options)
            except (InvalidData, MemoryError):
                raise (_Overdue if options.terminate else _Refused) from None

    def differs(self, batch: Arrays, answers: Arrays) -> str:
        """How a batch is answered otherwise than its rows alone; empty if it is not."""
        count = len(next(iter(batch.values())))
        if not _rowwise(answers, count):
            return _NO_ROWS
        for at in range(count):
            row = _row(batch, at)
            try:
                single = self.answers(row)
            except _Refused:
                return "a row that is answered in a batch is refused alone"
            if not _same_row(_row(answers, at), single, row):
                return _OTHERWISE
            if sum(array.size for array in (*row.values(), *single.values())) <= _MOST_ELEMENTS:
                self.seen.append((row, single))
        return ""

    def differs_together(self) -> str:
        """The same of all rows that were seen, in one batch and in another order: other neighbours, other places.

        Each was answered in time beside others: if they are not now, that is because they are more.
        """
        order = np.random.default_rng(0).permutation(len(self.seen))[: self.together]
        batch = {name: np.concatenate([self.seen[at][0][name] for at in order]) for name in self.seen[0][0]}
        try:
            answers = self.answers(batch)
        except _Overdue:
            return ""
        if not _rowwise(answers, len(order)):
            return _NO_ROWS
        alike = (_same_row(_row(answers, n), self.seen[at][1], self.seen[at][0]) for n, at in enumerate(order))
        return "" if all(alike) else _OTHERWISE


def dependence(session: ort.InferenceSession, datatypes: Mapping[str, Datatype], made: Arrays, answers: Arrays) -> str:
    """How rows depend on their neighbours; empty if they were not seen to.

    Args:
        session: of the model.
        datatypes: of its inputs.
        made: a batch of small values, which it takes.
        answers: what it gave for them.
    """
    probe, began = _Probe(session), time.monotonic()
    if why := probe.differs(made, answers):
        return why
    now = time.monotonic()
    row_s = (now - began) / len(next(iter(made.values())))
    probe.run_s = max(_RUN_S, _SLOWER * row_s)
    if row_s > 0:  # as many as leave half of the time to larger values
        probe.together = min(_MOST_TOGETHER, int(probe.run_s / (2 * row_s)))
    shapes = {name: list(array.shape) for name, array in made.items()}
    try:
        if why := _varied(probe, datatypes, shapes, now + _TIME_S):
            return why
        if probe.seen:
            return probe.differs_together()
    except _Overdue:
        return "a batch with larger values takes far longer, and its other rows would wait for it"
    except _Refused:
        pass
    return ""


def _varied(probe: _Probe, datatypes: Mapping[str, Datatype], shapes: Mapping[str, list[int]], until: float) -> str:
    """Batches of larger values, for as long as there is time."""
    for seed, levels in enumerate(_BATCHES):
        for varied in _choices(datatypes):
            if time.monotonic() > until:
                return ""
            batch = {
                name: rows(datatype, shapes[name], levels if name in varied else (SMALL,) * len(levels), seed)
                for name, datatype in datatypes.items()
            }
            try:
                given = probe.answers(batch)
            except _Refused:
                continue
            if why := probe.differs(batch, given):
                return why
            if len(varied) == len(datatypes):
                break
    return ""


def _choices(datatypes: Mapping[str, Datatype]) -> Iterator[set[str]]:
    """Inputs that get larger values: all; should those be refused, each of whole numbers or texts by itself, then none.

    Those of floats always get them: it is an index or a count that a model refuses.
    """
    floats = {name for name, datatype in datatypes.items() if datatype in _FLOATS}
    others = [name for name in datatypes if name not in floats]
    yield set(datatypes)
    if len(others) > 1:
        yield from (floats | {name} for name in others[:_MOST_APART])
    if floats and others:
        yield floats


def _rowwise(answers: Arrays, count: int) -> bool:
    return all(answer.ndim > 0 and len(answer) == count for answer in answers.values())


def _row(arrays: Arrays, at: int) -> Arrays:
    return {name: array[at : at + 1] for name, array in arrays.items()}


def _same_row(one: Arrays, other: Arrays, row: Arrays) -> bool:
    """Rounding grows with what is summed, which is seen in the row and in its answer."""
    given = max([1.0, *(_largest(array) for array in row.values())])
    return all(same(one[name], other[name], max(given, _largest(other[name]))) for name in other)


def _largest(array: npt.NDArray[Any]) -> float:
    if array.dtype.kind != "f":
        return 0.0
    finite = np.abs(array[np.isfinite(array)], dtype=np.float64)
    return float(finite.max(initial=0.0))
